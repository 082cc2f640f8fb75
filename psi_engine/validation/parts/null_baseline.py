"""Real channels against random sets of patches (Fig. 2a, 2b and Table 1 of the paper).

Random sets of sites take the place of channels and are scored as channels are. Both kinds are
compared with the same half of the pool (:mod:`psi_engine.validation.null_channels`), under every
null family and as the products of the presets. Areas are of z and of log PSI, which order units
as Ŝ, Q̂, D̂ and PSI do, but do not run together where those round to 1. A run that kept no bank of
unrelated texts gets one where its encoder can embed it; else the paper's preset takes
``text-shuffle`` in its place, and says so.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import zip_longest
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from scipy import stats

from psi_engine.config import DNull, ScoreConfig
from psi_engine.detection import interval, resample, weighted_areas
from psi_engine.nulls.registry import NULLS
from psi_engine.ops.random import hash_keys, string_key
from psi_engine.report.plots.null_baseline import draw
from psi_engine.stored import StoredRun
from psi_engine.types import COMPONENTS, Scores
from psi_engine.validation.bank import with_bank
from psi_engine.validation.evidence import CHEAP_NULLS, d_nulls
from psi_engine.validation.null_channels import (
    NullChannels,
    differences,
    lack_of_images,
    null_channels,
)
from psi_engine.validation.part import Context, Options, Part, Result

ALPHA = 0.05
"""Level at which calls are counted: so many of the random sets should be called."""

RAW = "raw"
"""Stands in the column ``null`` for the uncalibrated value."""

_IN_PLACE: DNull = "text-shuffle"
_KINDS = ("real", "null")
_DRAWS = ScoreConfig().replicates


@dataclass(frozen=True)
class _Call:
    """One call of the scorer: which of its numbers are wanted, and under what name.

    nulls : component → name of its null, for the components to keep. preset : name that PSI is
    kept under, or None.
    """

    config: ScoreConfig
    nulls: Mapping[str, str]
    preset: str | None = None


@dataclass(frozen=True)
class _Measured:
    """A measure of both kinds: value to order by and p, each float64 (units,).

    components : the nulls it was made with, such as "S pool, Q permutation"; None for raw values.
    """

    measure: str
    null: str
    draws: int | None
    value: dict[str, NDArray[np.float64]]
    p: dict[str, NDArray[np.float64]]
    components: str | None


def compute(context: Context) -> Result:
    """Score real channels and random sets under every null, layer by layer.

    Returns
    -------
    Result
        ``units``: one row per layer, measure (S | Q | D | PSI), null (a family; ``raw``; for PSI
        a preset), kind (real | null) and unit (the channel, or the set's number): ``value`` (z,
        log PSI or the raw value), ``p``. ``areas``: per layer, measure and null the AUROC and
        average precision of real channels against random sets with bootstrap intervals (a
        missing value counts against the measure; None where a kind has none at all), how many
        of each kind there are and have no value, the ``draws`` of the null, the share of each
        kind with p ≤ 0.05 (``called_real``, ``called_null``), the latter with its Wilson
        interval: on random sets a calibrated null calls a twentieth; and ``components``, the
        nulls in the row, component by component.
    """
    options = context.options
    texts, lacking = with_bank(context.stored)
    stored = replace(context.stored, texts=texts)
    notes: dict[str, None] = {}
    if lacking is not None:
        told = f"D against unrelated-text is left out, {_IN_PLACE} stands in the paper's preset"
        notes[f"{told}: {lacking}"] = None
    units, areas = [], []
    calls = list(_calls(stored, options))
    for number, layer in enumerate(stored.layers):
        sets = null_channels(stored.layers[layer], options.null_channels, options.seed)
        notes.update(dict.fromkeys(sets.notes))
        notes.update(dict.fromkeys(differences(stored.layers[layer], options.seed)))
        channels = stored.layers[layer].sites.channels.numpy()
        measured: list[_Measured] = []
        rows: dict[str, NDArray[np.int64]] = {}
        for place, call in enumerate(calls):
            found = _score(stored, layer, sets, call)
            if place == 0:
                scored = np.flatnonzero([status != "failed" for status in found.status])
                real = scored < len(channels)
                rows = {"real": scored[real], "null": scored[~real]}
            notes.update(_telling(layer, call, found))
            measured += _measures(call, found, rows, raw=place == 0)
            context.tell(
                "scoring", number * len(calls) + place + 1, len(stored.layers) * len(calls)
            )
        left_out = len(channels) - len(rows["real"])
        if left_out:
            notes[f"{layer}: {left_out} channels cannot be scored and are in no area"] = None
        names = {"real": channels[rows["real"]], "null": rows["null"] - len(channels)}
        units += [_unit_rows(layer, one, names) for one in measured]
        of_layer = _areas(layer, measured, options.bootstrap, options.seed)
        notes.update(_refused(layer, of_layer))
        areas += of_layer
    tables = {"units": pa.concat_tables(units), "areas": pa.Table.from_pylist(areas, _AREAS)}
    return Result(tables, tuple(notes), _headline(areas))


def _calls(stored: StoredRun, options: Options) -> Iterator[_Call]:
    """The presets, then calls that cover every null: one of S, one of Q and one of D in each."""
    own = replace(stored.config.score, subsamples=0)
    if options.replicates is not None:
        own = replace(own, replicates=options.replicates)
    calibrated = ScoreConfig(seed=own.seed, replicates=options.replicates or _DRAWS)
    if replace(calibrated, replicates=own.replicates, memory=own.memory) == own:
        calibrated = own
    paper = ScoreConfig.preset("paper", seed=own.seed)
    if stored.texts.unrelated is None:
        own, paper = (
            replace(x, d_null=_IN_PLACE) if x.d_null == "unrelated-text" else x
            for x in (own, paper)
        )
    presets = {"calibrated": calibrated, "paper": paper}
    if own not in presets.values():
        presets = {"run": own} | presets
    for name, config in presets.items():
        yield _Call(config, {}, name)
    named = {"s": list(NULLS["s"]), "q": list(NULLS["q"]), "d": d_nulls(stored.texts)}
    if stored.labels is None:
        named["q"] = []
    if stored.texts.embeddings is None:
        named["d"] = []
    for cheap in (True, False):  # apart, because a call has one number of replicates
        lists = ([x for x in named[c] if (x in CHEAP_NULLS) == cheap] for c in COMPONENTS)
        for chosen in zip_longest(*lists):
            nulls = {x: name for x, name in zip(COMPONENTS, chosen, strict=True) if name}
            # what is not asked for costs nothing under these
            unasked = {"s": "rotation-shared", "q": "exact", "d": "text-rotation"}
            changes: dict[str, Any] = {f"{x}_null": null for x, null in (unasked | nulls).items()}
            draws = own.replicates if cheap else min(own.replicates, options.channel_replicates)
            config = replace(own, replicates=draws, **changes)
            yield _Call(config, nulls)


def _score(stored: StoredRun, layer: str, sets: NullChannels, call: _Call) -> Scores:
    """Score real channels, then random sets, in one call: the same draws of every shared null."""
    real = stored.layers[layer]
    given: dict[str, Any] = {
        "embeddings": torch.cat([real.embeddings, sets.embeddings]),
        "mask": torch.cat([real.mask, torch.ones(sets.rows.shape, dtype=torch.bool)]),
        "channel_ids": torch.cat([real.channel_ids, sets.channel_ids]),
        "pool": sets.pool,
        "labels": None,
    }
    asked = call.nulls.keys() if call.preset is None else COMPONENTS
    if "q" in asked and real.labels is not None and sets.labels is not None:
        given["labels"] = torch.cat([real.labels, sets.labels])
    if "d" not in asked:
        given |= {"text_embeddings": None, "concept_ids": None}
    if "d" not in asked or call.config.d_null != "unrelated-text":
        given |= {"unrelated_text_embeddings": None, "unrelated_concept_ids": None}
    return stored.score(layer, call.config, **given)


def _telling(layer: str, call: _Call, scores: Scores) -> dict[str, None]:
    """What the scorer said, except what every call of ours makes it say."""
    about = f"{layer}, {call.preset or ', '.join(call.nulls.values())}"
    ours = ("no labels", "no text", "with ", "unrelated_text_embeddings are not used")
    said = {f"{about}: {note}": None for note in scores.notes if not note.startswith(ours)}
    if call.preset is not None:  # which is given all there is: what it lacks, the run lacks
        said |= {f"{layer}: {note}": None for note in scores.notes if note.startswith(ours[:2])}
    return said


def _measures(
    call: _Call, found: Scores, rows: Mapping[str, NDArray[np.int64]], *, raw: bool
) -> list[_Measured]:
    """What a call is kept for; with ``raw`` the uncalibrated components too."""

    def of(name: str) -> dict[str, NDArray[np.float64]]:
        values = getattr(found, name).numpy()
        return {kind: values[rows[kind]] for kind in _KINDS}

    draws = call.config.replicates
    if call.preset is None:
        return [
            _Measured(x.upper(), null, draws, of(f"{x}_z"), of(f"{x}_p"), f"{x.upper()} {null}")
            for x, null in call.nulls.items()
        ]
    used = ", ".join(f"{x.upper()} {getattr(call.config, f'{x}_null')}" for x in found.available)
    listed = [_Measured("PSI", call.preset, draws, of("log_psi"), of("psi_p"), used)]
    if raw:
        blank = {kind: np.full(len(rows[kind]), np.nan) for kind in _KINDS}
        listed += [_Measured(x.upper(), RAW, None, of(x), blank, None) for x in found.available]
    return listed


def _unit_rows(layer: str, one: _Measured, names: Mapping[str, NDArray[np.int64]]) -> pa.Table:
    kind = np.repeat(_KINDS, [len(names[kind]) for kind in _KINDS])
    columns = {
        name: np.concatenate([values[kind] for kind in _KINDS])
        for name, values in (("unit", names), ("value", one.value), ("p", one.p))
    }
    return pa.table(
        {
            "layer": pa.array([layer] * len(kind), pa.string()),
            "measure": pa.array([one.measure] * len(kind), pa.string()),
            "null": pa.array([one.null] * len(kind), pa.string()),
            "kind": pa.array(kind, pa.string()),
            "unit": pa.array(columns["unit"], pa.int64()),
            **{x: pa.array(columns[x], mask=np.isnan(columns[x])) for x in ("value", "p")},
        }
    )


def _areas(
    layer: str, measured: list[_Measured], resamples: int, seed: int
) -> list[dict[str, Any]]:
    """AUROC and average precision of every measure, all over the same resampled units."""
    counts, values = {}, {}
    for kind in _KINDS:
        values[kind] = np.stack([one.value[kind] for one in measured])
        key = int(hash_keys(seed, string_key(f"null-baseline/{kind}"), string_key(layer)))
        counts[kind] = resample(key, values[kind].shape[1], resamples)
    if not all(x.shape[1] for x in values.values()):
        return []
    found = weighted_areas(values["real"], values["null"], counts["real"], counts["null"])
    rows = []
    for one, auroc, precision in zip(measured, *found, strict=True):
        row: dict[str, Any] = {"layer": layer, "measure": one.measure, "null": one.null}
        whole = any(bool(np.isnan(values).all()) for values in one.value.values())
        for name, draws in (("auroc", auroc), ("average_precision", precision)):
            ends = [None] * 3 if whole else [draws[0], *interval(draws[1:])]
            row |= dict(zip((name, f"{name}_low", f"{name}_high"), ends, strict=True))
        for kind in _KINDS:
            row[f"{kind}_units"] = len(one.value[kind])
            row[f"{kind}_missing"] = int(np.isnan(one.value[kind]).sum())
        rows.append(row | {"draws": one.draws} | _called(one) | {"components": one.components})
    return rows


def _refused(layer: str, areas: list[dict[str, Any]]) -> dict[str, None]:
    """What has no value, by the shares of either kind without one."""
    alike: dict[tuple[float, float], list[str]] = {}
    for row in areas:
        real, null = (row[f"{kind}_missing"] / row[f"{kind}_units"] for kind in _KINDS)
        if real or null:
            alike.setdefault((real, null), []).append(f"{row['measure']} {row['null']}")
    notes: dict[str, None] = {}
    for (real, null), names in alike.items():
        so = "no area" if max(real, null) == 1 else "these count against the measure"
        text = f"{real:.1%} of the channels and {null:.1%} of the random sets have no value: {so}"
        notes[f"{layer}: {', '.join(names)}: {text}"] = None
    return notes


def _called(one: _Measured) -> dict[str, Any]:
    """Shares with p ≤ :data:`ALPHA`; None where there is no p, or none can be so small."""
    names = ("called_real", "called_null", "called_null_low", "called_null_high")
    p = {kind: values[~np.isnan(values)] for kind, values in one.p.items()}
    if not all(map(len, p.values())) or (one.draws is not None and (one.draws + 1) * ALPHA < 1):
        return dict.fromkeys(names)
    calls = {kind: int((values <= ALPHA).sum()) for kind, values in p.items()}
    ends = stats.binomtest(calls["null"], len(p["null"])).proportion_ci(method="wilson")
    shares = [calls[kind] / len(p[kind]) for kind in _KINDS]
    return dict(zip(names, (*shares, float(ends.low), float(ends.high)), strict=True))


def _headline(areas: list[dict[str, Any]]) -> tuple[str, ...]:
    said = []
    for row in areas:
        if row["measure"] == "PSI" and row["auroc"] is not None:
            line = (
                f"{row['layer']}: AUROC of PSI ({row['null']}: {row['components']}) "
                f"against random sets {row['auroc']:.3f} "
                f"[{row['auroc_low']:.3f}, {row['auroc_high']:.3f}]"
            )
            if row["called_null"] is not None:
                line += f", p ≤ {ALPHA} for {row['called_null']:.1%} of them"
            said.append(line)
    return tuple(said)


_AREAS = pa.schema(
    [
        *((name, pa.string()) for name in ("layer", "measure", "null")),
        *(
            (f"{name}{end}", pa.float64())
            for name in ("auroc", "average_precision")
            for end in ("", "_low", "_high")
        ),
        *((f"{kind}_{what}", pa.int64()) for kind in _KINDS for what in ("units", "missing")),
        ("draws", pa.int64()),
        *(
            (name, pa.float64())
            for name in ("called_real", "called_null", "called_null_low", "called_null_high")
        ),
        ("components", pa.string()),
    ]
)

PART = Part(
    "null-baseline",
    compute,
    draw,
    lack_of_images,
    ("bootstrap", "replicates", "channel_replicates", "null_channels", "seed"),
    version=2,
)
