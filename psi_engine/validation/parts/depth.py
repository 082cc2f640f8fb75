"""How scores change from layer to layer (Fig. 2c of the paper)."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from scipy import stats

from psi_engine.detection import interval, resample, weighted_areas
from psi_engine.ops.random import hash_keys, string_key
from psi_engine.paired_tests import holm
from psi_engine.report.plots.depth import draw
from psi_engine.validation.part import Context, Part, Result

MEASURES = ("log_psi", "s_z", "q_z", "d_z", "clarity")
"""What layers are compared by: columns of ``channels.parquet``."""

_QUARTILES = (0.25, 0.5, 0.75)
_LEAST = 2
# Channels of a layer that a test needs.

Values = dict[str, NDArray[np.float64]]


def compute(context: Context) -> Result:
    """Compare the layers of a run, each with each, by log PSI and its parts.

    Returns
    -------
    Result
        ``values``: layer, channel and every measure. ``layers``: per measure and layer the
        number of channels with a value, mean, quartiles, and the ``place`` of the layer in the
        run. ``pairs``: per measure and pair of layers the two-sided Kolmogorov–Smirnov and
        Mann–Whitney tests, the AUROC of the ``later`` layer over the ``earlier`` one
        (= U/(n·m)) with its bootstrap interval, whether the later median is above the earlier
        layer's upper quartile, and p adjusted by Holm's method over all pairs of the measure,
        test by test; ``next`` marks neighbouring layers.
    """
    stored, options = context.stored, context.options
    table = stored.run.channels
    layers = list(stored.layers)
    held: list[dict[str, Any]] = []
    pairs: list[dict[str, Any]] = []
    notes = [
        f"{layer}: {missing} channels have no score and are left out"
        for layer in layers
        if (missing := _column(table, layer, "log_psi")[1])
    ]
    for number, measure in enumerate(MEASURES):
        values = {layer: _column(table, layer, measure)[0] for layer in layers}
        held += [
            {"measure": measure, "layer": layer, "place": place} | _summary(values[layer])
            for place, layer in enumerate(layers)
        ]
        pairs += _pairs(measure, values, options.bootstrap, options.seed)
        context.tell("measures", number + 1, len(MEASURES))
    if len(layers) == 1:
        notes.append("one layer: nothing to compare it with")
    tables = {
        "values": table.select(["layer", "channel", *MEASURES]),
        "layers": pa.Table.from_pylist(held),
        "pairs": pa.Table.from_pylist(pairs, _PAIRS),
    }
    return Result(tables, tuple(notes), _headline(held, pairs))


def _column(table: pa.Table, layer: str, name: str) -> tuple[NDArray[np.float64], int]:
    """Values of a layer's channels, and how many channels have none."""
    column = table.filter(pc.equal(table["layer"], layer))[name]
    values = column.drop_null().to_numpy().astype(np.float64)
    return values, len(column) - len(values)


def _summary(values: NDArray[np.float64]) -> dict[str, Any]:
    names = ("lower_quartile", "median", "upper_quartile")
    if not len(values):
        return {"channels": 0, "mean": None, **dict.fromkeys(names)}
    quartiles = map(float, np.quantile(values, _QUARTILES))
    found = dict(zip(names, quartiles, strict=True))
    return {"channels": len(values), "mean": float(values.mean()), **found}


def _pairs(measure: str, values: Values, resamples: int, seed: int) -> list[dict[str, Any]]:
    layers = list(values)
    counts = {
        layer: resample(_key(seed, layer), len(x), resamples)
        for layer, x in values.items()
        if len(x)
    }
    rows: list[dict[str, Any]] = []
    for one, other in combinations(range(len(layers)), 2):
        earlier, later = layers[one], layers[other]
        low, high = values[earlier], values[later]
        if min(len(low), len(high)) < _LEAST:
            continue
        ks = stats.ks_2samp(high, low)
        rank = stats.mannwhitneyu(high, low, alternative="two-sided")
        auroc = weighted_areas(high[None], low[None], counts[later], counts[earlier]).auroc[0]
        ends = interval(auroc[1:])
        rows.append(
            {
                "measure": measure,
                "earlier": earlier,
                "later": later,
                "next": other == one + 1,
                "earlier_channels": len(low),
                "later_channels": len(high),
                "ks": float(ks.statistic),
                "ks_p": float(ks.pvalue),
                "mann_whitney_u": float(rank.statistic),
                "mann_whitney_p": float(rank.pvalue),
                "auroc": float(auroc[0]),
                "auroc_low": float(ends[0]),
                "auroc_high": float(ends[1]),
                "above_upper_quartile": bool(np.median(high) > np.quantile(low, _QUARTILES[2])),
            }
        )
    for test in ("ks_p", "mann_whitney_p"):
        for row, p in zip(rows, holm([row[test] for row in rows]), strict=True):
            row[f"{test}_adj"] = float(p)
    return rows


def _key(seed: int, layer: str) -> int:
    return int(hash_keys(seed, string_key("depth"), string_key(layer)))


def _headline(held: list[dict[str, Any]], pairs: list[dict[str, Any]]) -> tuple[str, ...]:
    medians = [
        f"{row['layer']} {row['median']:.3g}"
        for row in held
        if row["measure"] == "log_psi" and row["median"] is not None
    ]
    said = ["median log PSI: " + ", ".join(medians)]
    said += [
        f"{row['later']} over {row['earlier']}: AUROC {row['auroc']:.3f} "
        f"[{row['auroc_low']:.3f}, {row['auroc_high']:.3f}], KS p {row['ks_p_adj']:.2g}, "
        f"Mann–Whitney p {row['mann_whitney_p_adj']:.2g} (Holm)"
        for row in pairs
        if row["measure"] == "log_psi" and row["next"]
    ]
    return tuple(said)


_PAIRS = pa.schema(
    [
        *((name, pa.string()) for name in ("measure", "earlier", "later")),
        ("next", pa.bool_()),
        *((name, pa.int64()) for name in ("earlier_channels", "later_channels")),
        *(
            (name, pa.float64())
            for name in (
                "ks", "ks_p", "mann_whitney_u", "mann_whitney_p", "auroc", "auroc_low",
                "auroc_high",
            )
        ),
        ("above_upper_quartile", pa.bool_()),
        *((name, pa.float64()) for name in ("ks_p_adj", "mann_whitney_p_adj")),
    ]
)  # fmt: skip
# Given, so that a run of one layer has the table too, without rows.

PART = Part("depth", compute, draw, options=("bootstrap", "seed"))
