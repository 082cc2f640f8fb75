"""How much D and PSI depend on the encoder (Fig. 6 of the paper)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from psi_engine.encoders import check_encoder
from psi_engine.ops.contingency import normalized_mutual_information
from psi_engine.ops.random import hash_keys, string_key
from psi_engine.paired_tests import mean_intervals
from psi_engine.rank_correlation import LEAST, rank_correlation
from psi_engine.report.plots.encoder import draw
from psi_engine.types import COMPONENTS, VERDICTS
from psi_engine.validation.part import Context, Part, Result
from psi_engine.validation.second_encoder import (
    OF_DEMO,
    Judgement,
    Sister,
    embed_again,
    judge_again,
    judged_before,
)

MEASURES = (*(name for x in COMPONENTS for name in (x, f"{x}_z")), "log_psi", "clarity")
"""What is ranked under both encoders, by its column of the channels' table."""

ALL = "all layers"

_COPIED = (*MEASURES, "psi", "psi_p_adj", "n_clusters", "verdict", "status", "reason")
_ENDS = ("first", "second")


def needs(context: Context) -> str | None:
    """A second encoder; one that is named must exist."""
    options = context.options
    spec = _specification(context)
    if spec is None:
        return "no second encoder is named; give --second-encoder"
    check_encoder(spec, options.second_encoder_weights)
    return None


def _specification(context: Context) -> str | None:
    return context.options.second_encoder or OF_DEMO.get(context.stored.config.encoder)


def compute(context: Context) -> Result:
    """Compare every channel under the run's encoder and under another.

    Returns
    -------
    Result
        ``channels``: one row per channel, each score under both (``_first``, ``_second``), names
        of the clusters, largest first, ``cluster_nmi`` (do both split the patches alike?) and
        ``shared_concepts`` (common names over all names). ``agreement``: rank correlations per
        layer and measure. ``choices``: per layer, how often verdict, k̂ and the largest cluster's
        name are the same, with what chance would give and Cohen's κ; means of ``cluster_nmi``
        and ``shared_concepts``. ``verdicts``: channels by verdict under both.
    """
    stored, options = context.stored, context.options
    spec = _specification(context)
    assert spec is not None  # `needs` saw to it
    sister = embed_again(
        stored,
        spec,
        options.second_encoder_weights,
        context.folder,
        device=options.device,
        progress=context.progress,
    )
    parts, notes = [], []
    for number, (name, layer) in enumerate(stored.layers.items()):
        context.tell("scoring layers", number, len(stored.layers))
        first, second = judged_before(stored, layer), judge_again(stored, layer, sister)
        parts += compare_channels(first, second)
        notes += [f"{name}, {sister.name}: {x}" for x in second.notes if x not in first.notes]
    first_name = stored.run.manifest["encoder"]["name"]
    layers = [*stored.layers, *([ALL] if len(stored.layers) > 1 else [])]
    by_layer = {name: _of_layer(parts, name) for name in layers}
    agreement = [row for name, rows in by_layer.items() for row in rank_rows(name, rows, options)]
    choices = [row for name, rows in by_layer.items() for row in choice_rows(name, rows, options)]
    verdicts = [row for name, rows in by_layer.items() for row in verdict_rows(name, rows)]
    tables = {
        "channels": channel_rows_table(parts),
        "agreement": pa.Table.from_pylist(agreement, _AGREEMENT),
        "choices": pa.Table.from_pylist(choices, _CHOICES),
        "verdicts": pa.Table.from_pylist(verdicts),
        "encoders": pa.Table.from_pylist(
            [
                {"encoder": "first", "name": first_name, "vocabulary": _vocabulary(context)},
                {"encoder": "second", "name": sister.name, "vocabulary": sister.vocabulary},
            ]
        ),
    }
    notes = [*_vocabulary_notes(stored.concepts, sister), *_left_out(parts), *notes]
    return Result(tables, tuple(notes), tuple(_headline(layers[-1], sister, agreement, choices)))


def _vocabulary(context: Context) -> str:
    said: str = context.stored.run.manifest["stages"]["score"]["vocabulary"]
    return said


def compare_channels(first: Judgement, second: Judgement) -> list[dict[str, Any]]:
    """One row per channel: the scores under both encoders, and how far the clusters agree."""
    alike = _cluster_agreement(first.assignments, second.assignments)
    columns = [[x.channels[name].to_pylist() for name in _COPIED] for x in (first, second)]
    named = [cluster_names(x) for x in (first, second)]
    rows = []
    for place, (layer, channel) in enumerate(
        zip(first.channels["layer"].to_pylist(), first.channels["channel"].to_pylist(), strict=True)
    ):
        row: dict[str, Any] = {"layer": layer, "channel": channel}
        names = [x.get(channel, []) for x in named]
        for end, values, concepts in zip(_ENDS, columns, names, strict=True):
            row |= {
                f"{name}_{end}": column[place] for name, column in zip(_COPIED, values, strict=True)
            }
            row[f"concept_{end}"] = concepts[0] if concepts else None
            row[f"concepts_{end}"] = concepts or None
        scored = all(row[f"status_{end}"] != "failed" for end in _ENDS)
        row["cluster_nmi"] = float(alike[place]) if scored else None
        row["shared_concepts"] = _shared(*names) if all(names) else None
        rows.append(row)
    return rows


def _cluster_agreement(first: NDArray[np.int64], second: NDArray[np.int64]) -> NDArray[np.float64]:
    return normalized_mutual_information(torch.from_numpy(first), torch.from_numpy(second)).numpy()


def cluster_names(judged: Judgement) -> dict[int, list[str]]:
    """Best concept of each cluster by channel, the largest cluster first; none without text.

    Equal sizes keep the clusters' order.
    """
    names: dict[int, list[str]] = {}
    rows = judged.clusters.select(["channel", "size", "concepts"]).to_pylist()
    for row in sorted(rows, key=lambda row: (row["channel"], -row["size"])):
        if row["concepts"]:
            names.setdefault(row["channel"], []).append(row["concepts"][0]["concept"])
    return names


def _shared(one: Sequence[str], other: Sequence[str]) -> float:
    first, second = ({name.casefold() for name in names} for names in (one, other))
    return len(first & second) / len(first | second)


def _of_layer(rows: list[dict[str, Any]], layer: str) -> list[dict[str, Any]]:
    """Rows of a layer that both encoders could score."""
    return [
        row
        for row in rows
        if layer in (ALL, row["layer"]) and all(row[f"status_{end}"] != "failed" for end in _ENDS)
    ]


def _pair(rows: list[dict[str, Any]], name: str) -> tuple[NDArray[Any], NDArray[Any]]:
    one, other = ([row[f"{name}_{end}"] for row in rows] for end in _ENDS)
    return np.array(one, dtype=np.float64), np.array(other, dtype=np.float64)


def _key(options: Any, layer: str, what: str) -> int:
    name = string_key(f"validation/encoder/{layer}/{what}")
    return int(hash_keys(options.seed, name))


def rank_rows(layer: str, rows: list[dict[str, Any]], options: Any) -> list[dict[str, Any]]:
    """Rank correlations of each measure that both encoders have."""
    found = []
    for name in MEASURES:
        one, other = _pair(rows, name)
        result = rank_correlation(
            one, other, key=_key(options, layer, name), resamples=options.bootstrap
        )
        if result.n >= LEAST:
            values = _without_nan(result._asdict())
            found.append({"layer": layer, "measure": name, "channels": values.pop("n"), **values})
    return found


def _without_nan(row: dict[str, Any]) -> dict[str, Any]:
    return {name: None if value != value else value for name, value in row.items()}


def choice_rows(layer: str, rows: list[dict[str, Any]], options: Any) -> list[dict[str, Any]]:
    """How often both encoders choose the same, and how alike clusters and names are."""
    found = []
    for what in ("verdict", "n_clusters", "concept"):
        pairs = [tuple(row[f"{what}_{end}"] for end in _ENDS) for row in rows]
        pairs = [pair for pair in pairs if None not in pair]
        if pairs:
            same = np.array([a == b for a, b in pairs], np.float64)
            chance = _by_chance(pairs)
            kappa = (same.mean() - chance) / (1 - chance) if chance < 1 else None
            key = _key(options, layer, what)
            found.append(
                {"layer": layer, "what": f"same {what}", **_mean(same, key, options.bootstrap)}
                | {"by_chance": chance, "kappa": kappa}
            )
    for what in ("cluster_nmi", "shared_concepts"):
        values = np.array([row[what] for row in rows if row[what] is not None], np.float64)
        if len(values):
            key = _key(options, layer, what)
            found.append({"layer": layer, "what": what, **_mean(values, key, options.bootstrap)})
    return found


def _by_chance(pairs: Sequence[tuple[Any, ...]]) -> float:
    """Agreement of independent choices with these marginals (Cohen 1960)."""
    total = len(pairs)
    first, second = zip(*pairs, strict=True)
    return sum(first.count(x) * second.count(x) for x in set(first)) / total**2


def _mean(values: NDArray[np.float64], key: int, resamples: int) -> dict[str, Any]:
    (low,), (high,) = mean_intervals(key, values[None], resamples)
    found = {"channels": len(values), "mean": values.mean(), "low": low, "high": high}
    return _without_nan(found)


def verdict_rows(layer: str, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Channels by verdict under both encoders, zeros too."""
    pairs = [(row["verdict_first"], row["verdict_second"]) for row in rows]
    return [
        {"layer": layer, "first": one, "second": other, "channels": pairs.count((one, other))}
        for one, other in product(VERDICTS[:3], VERDICTS[:3])
    ]


def _vocabulary_notes(concepts: Sequence[str] | None, sister: Sister) -> list[str]:
    if concepts is None or sister.concepts is None:
        without = "the run's encoder" if concepts is None else sister.name
        return [f"{without} has no text side: D and names are not compared, PSI is without D there"]
    one, other = ({name.casefold() for name in x} for x in (concepts, sister.concepts))
    if one == other:
        return []
    return [
        f"the vocabularies differ: {len(one)} and {len(other)} names, {len(one & other)} in both; "
        "agreement of names is bounded by that"
    ]


def _left_out(rows: list[dict[str, Any]]) -> list[str]:
    notes = []
    for end in _ENDS:
        failed = [row for row in rows if row[f"status_{end}"] == "failed"]
        if failed:
            row = failed[0]
            notes.append(
                f"{len(failed)} channels are not scorable under the {end} encoder and left out, "
                f"such as {row['layer']}:{row['channel']}: {row[f'reason_{end}']}"
            )
    return notes


def _headline(
    layer: str, sister: Sister, agreement: list[dict[str, Any]], choices: list[dict[str, Any]]
) -> list[str]:
    said = [
        f"{name} under {sister.name}, {row['channels']} channels: Spearman {row['spearman']:.2f} "
        f"[{row['spearman_low']:.2f}, {row['spearman_high']:.2f}], Kendall {row['kendall']:.2f}"
        for measure, name in (("d", "D"), ("log_psi", "PSI"))
        for row in agreement
        if (row["layer"], row["measure"]) == (layer, measure) and row["spearman"] is not None
    ]
    said += [
        f"the same verdict for {row['mean']:.0%} ({row['by_chance']:.0%} by chance)"
        for row in choices
        if (row["layer"], row["what"]) == (layer, "same verdict")
    ]
    return said


_FLOAT = pa.float64()
_AGREEMENT = pa.schema(
    [("layer", pa.string()), ("measure", pa.string()), ("channels", pa.int64())]
    + [
        (f"{name}{end}", _FLOAT)
        for name in ("spearman", "kendall")
        for end in ("", "_low", "_high", "_p")
    ]
)
_CHOICES = pa.schema(
    [("layer", pa.string()), ("what", pa.string()), ("channels", pa.int64())]
    + [(name, _FLOAT) for name in ("mean", "low", "high", "by_chance", "kappa")]
)


def channel_rows_table(rows: list[dict[str, Any]]) -> pa.Table:
    """The rows of :func:`compare_channels`, typed even where a column is empty."""
    kinds = {"n_clusters": pa.int64(), "concepts": pa.list_(pa.string())}
    words = ("verdict", "status", "reason", "concept")
    columns = [("layer", pa.string()), ("channel", pa.int64())]
    for end in _ENDS:
        for name in (*_COPIED, "concept", "concepts"):
            kind = kinds.get(name, pa.string() if name in words else _FLOAT)
            columns.append((f"{name}_{end}", kind))
    columns += [("cluster_nmi", _FLOAT), ("shared_concepts", _FLOAT)]
    return pa.Table.from_pylist(rows, pa.schema(columns))


PART = Part(
    "encoder",
    compute,
    draw,
    needs,
    ("bootstrap", "seed", "second_encoder", "second_encoder_weights"),
)
