"""Finished runs as one table: a row per model × preset × seed × layer, and seeds put together.

Columns of ``comparison``: ``name, model, weights, preset, seed, layer, depth`` (share of the
model's weight layers that have run), ``components`` (what entered PSI), ``channels, scorable,
dead, short``, one count per verdict (at the run's false discovery rate), ``X_q25, X_median,
X_q75`` over the scored channels of each measure in :data:`MEASURES` (``s_z`` is S in standard
deviations of its null), ``clusters_mean`` (k̂), ``field`` (side of the patch in pixels),
``images``; and of the whole run, the same in each of its rows: ``device``, ``seconds_STAGE``,
``images_per_second`` (mining), ``crops_per_second`` (embedding), ``peak_rss_bytes``,
``peak_device_bytes``. What is not known is empty.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from scipy import stats

from psi_engine.artifacts import STAGES, Run
from psi_engine.bench.plan import Entry
from psi_engine.types import COMPONENTS, VERDICTS

MEASURES = ("log_psi", "s", "s_z", "q", "q_z", "d", "d_z", "clarity")
"""Columns of ``channels.parquet`` that are summarised by quartiles."""

SPREAD = (
    "log_psi_median", "s_z_median", "q_z_median", "d_z_median", "clarity_median",
    "polysemantic_share", "clusters_mean", "images_per_second",
)  # fmt: skip
"""What is put together over seeds: mean, ddof-1 standard deviation, least and greatest."""

RUN_STAGES = STAGES[: STAGES.index("score") + 1]
"""The stages a run is made of; what comes after them is done to a finished run."""

_GROUP = ("name", "model", "weights", "preset", "layer")
_LEAST_CHANNELS = 4  # a rank correlation of fewer says nothing
_NUMBERS = (
    *(f"{measure}_{point}" for measure in MEASURES for point in ("q25", "median", "q75")),
    "clusters_mean", "field",
)  # fmt: skip


def _column(verdict: str) -> str:
    return verdict.replace(" ", "_").replace("-", "_")


SCHEMA = pa.schema(
    [(name, pa.string()) for name in ("name", "model", "weights", "preset")]
    + [("seed", pa.int64()), ("layer", pa.string()), ("depth", pa.float64())]
    + [("components", pa.string())]
    + [(name, pa.int64()) for name in ("channels", "scorable", "dead", "short")]
    + [(_column(verdict), pa.int64()) for verdict in VERDICTS]
    + [(name, pa.float64()) for name in _NUMBERS]
    + [("images", pa.int64()), ("device", pa.string())]
    + [(f"seconds_{stage}", pa.float64()) for stage in ("prepare", *RUN_STAGES)]
    + [("images_per_second", pa.float64()), ("crops_per_second", pa.float64())]
    + [("peak_rss_bytes", pa.int64()), ("peak_device_bytes", pa.int64())]
)
"""Of the comparison."""


class Finished(NamedTuple):
    """A finished run of a suite, and what the suite measured of it."""

    entry: Entry
    run: Run
    cost: Mapping[str, Any]


def compare(finished: Sequence[Finished]) -> dict[str, pa.Table]:
    """Compare finished runs.

    Returns
    -------
    dict of str to Table
        ``comparison``, see above; ``comparison_seeds``: a row per model × preset × layer with
        ``seeds`` (how many), ``NAME_mean``, ``_sd`` (empty for one seed), ``_min`` and ``_max``
        of each of :data:`SPREAD`, and ``rank_agreement``, ``rank_agreement_min``: mean and least
        Spearman correlation of log PSI between two seeds over the channels scored under both.
    """
    rows = [row for one in finished for row in _rows(one)]
    log_psi = {
        (*_address(one, layer), one.entry.seed): _log_psi(one.run, layer)
        for one in finished
        for layer in pc.unique(one.run.channels["layer"]).to_pylist()
    }
    groups: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault(tuple(row[name] for name in _GROUP), []).append(row)
    together = [_over_seeds(key, group, log_psi) for key, group in groups.items()]
    return {
        "comparison": pa.Table.from_pylist(rows, SCHEMA),
        "comparison_seeds": pa.Table.from_pylist(together, _seeds_schema()),
    }


def differences(finished: Sequence[Finished]) -> list[str]:
    """Say where runs of one suite are not comparable: other images, encoders, devices, parts."""
    notes = []
    for what, found in (
        ("images", {one.run.manifest["fingerprints"]["data"] for one in finished}),
        ("encoders", {one.run.manifest["fingerprints"]["encoder"] for one in finished}),
        ("devices", {one.run.manifest["device"] for one in finished}),
        ("versions", {str(sorted(one.run.manifest["versions"].items())) for one in finished}),
        ("components of PSI", {row["components"] for one in finished for row in _rows(one)}),
    ):
        if len(found) > 1:
            notes.append(f"the runs differ in their {what}: {len(found)} kinds")
    return notes


def _address(one: Finished, layer: str) -> tuple[str, ...]:
    config = one.entry.config
    return one.entry.name, config.model, config.weights, one.entry.preset, layer


def _rows(one: Finished) -> list[dict[str, Any]]:
    table, manifest = one.run.channels, one.run.manifest
    stages = manifest["stages"]
    facts = {
        **dict(zip(_GROUP[:4], _address(one, ""), strict=False)),
        "seed": one.entry.seed,
        "images": stages["mine"]["images"],
        "device": manifest["device"],
        "seconds_prepare": manifest["preparation_seconds"],
        **{f"seconds_{stage}": stages[stage]["seconds"] for stage in RUN_STAGES},
        **one.cost,
    }
    if not facts.pop("continued", False):  # else the seconds are those of the last part alone
        facts["images_per_second"] = _rate(stages["mine"]["images"], stages["mine"]["seconds"])
        facts["crops_per_second"] = _rate(stages["embed"]["crops"], stages["embed"]["seconds"])
    depth = manifest.get("layers", {}).get("depth", {})
    rows = []
    for layer in pc.unique(table["layer"]).to_pylist():
        of_layer = table.filter(pc.equal(table["layer"], layer))
        field = stages["patches"]["fields"][layer]
        rows.append({
            **facts,
            "layer": layer,
            "depth": depth.get(layer),
            "field": float(max(field["size"])),
            **_summary(of_layer),
        })  # fmt: skip
    return rows


def _summary(table: pa.Table) -> dict[str, Any]:
    verdicts = table["verdict"].to_pylist()
    low, high = _values(table, "activation_min"), _values(table, "activation_max")
    scored = _values(table, "n_clusters") > 0
    present = [x for x in COMPONENTS if table[f"{x}_hat"].null_count < len(table)]
    summary: dict[str, Any] = {
        "components": " ".join(present),
        "channels": len(table),
        "scorable": len(table) - verdicts.count("not scorable"),
        "dead": int((~(high > low)).sum()),
        "short": table["status"].to_pylist().count("short"),
        **{_column(verdict): verdicts.count(verdict) for verdict in VERDICTS},
        "clusters_mean": float(_values(table, "n_clusters")[scored].mean())
        if scored.any()
        else None,
    }
    for measure in MEASURES:
        values = _values(table, measure)
        values = values[~np.isnan(values)]
        points = np.quantile(values, (0.25, 0.5, 0.75)).tolist() if len(values) else [None] * 3
        for point, value in zip(("q25", "median", "q75"), points, strict=True):
            summary[f"{measure}_{point}"] = value
    return summary


def _values(table: pa.Table, name: str) -> NDArray[np.float64]:
    """A column as float64, NaN where empty."""
    return table[name].cast(pa.float64()).to_numpy(zero_copy_only=False)


def _rate(count: int, seconds: float) -> float | None:
    return count / seconds if seconds else None


def _log_psi(run: Run, layer: str) -> dict[int, float]:
    table = run.channels
    table = table.filter(pc.and_(pc.equal(table["layer"], layer), pc.is_valid(table["log_psi"])))
    return dict(zip(table["channel"].to_pylist(), table["log_psi"].to_pylist(), strict=True))


def _over_seeds(
    key: tuple[str, ...],
    rows: Sequence[dict[str, Any]],
    log_psi: Mapping[tuple[Any, ...], dict[int, float]],
) -> dict[str, Any]:
    """Put the seeds of one model × preset × layer together."""
    together: dict[str, Any] = {
        **dict(zip(_GROUP, key, strict=True)),
        "depth": rows[0]["depth"],
        "channels": rows[0]["channels"],
        "seeds": len(rows),
    }
    for name in SPREAD:
        values = [_value(row, name) for row in rows]
        held = np.array([value for value in values if value is not None])
        if not len(held):
            continue
        together[f"{name}_mean"] = float(held.mean())
        together[f"{name}_sd"] = float(held.std(ddof=1)) if len(held) > 1 else None
        together[f"{name}_min"], together[f"{name}_max"] = float(held.min()), float(held.max())
    scores = [log_psi[*key, row["seed"]] for row in rows]
    agreements = [_agreement(one, other) for one, other in combinations(scores, 2)]
    known = [value for value in agreements if value is not None]
    if known:
        together["rank_agreement"] = float(np.mean(known))
        together["rank_agreement_min"] = min(known)
    return together


def _value(row: Mapping[str, Any], name: str) -> float | None:
    if name == "polysemantic_share":
        return row["polysemantic"] / row["scorable"] if row["scorable"] else None
    return row.get(name)


def _agreement(one: Mapping[int, float], other: Mapping[int, float]) -> float | None:
    """Spearman's ρ over the channels of both; None where it is not defined."""
    both = sorted(one.keys() & other.keys())
    x, y = ([scores[channel] for channel in both] for scores in (one, other))
    if len(both) < _LEAST_CHANNELS or len(set(x)) < 2 or len(set(y)) < 2:
        return None
    return float(stats.spearmanr(x, y).statistic)


def _seeds_schema() -> pa.Schema:
    return pa.schema(
        [(name, pa.string()) for name in _GROUP]
        + [("depth", pa.float64()), ("channels", pa.int64()), ("seeds", pa.int64())]
        + [(f"{n}_{end}", pa.float64()) for n in SPREAD for end in ("mean", "sd", "min", "max")]
        + [("rank_agreement", pa.float64()), ("rank_agreement_min", pa.float64())]
    )
