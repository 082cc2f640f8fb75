"""Real channels against random sets: histograms of log PSI, ROC curves, areas under each null."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from psi_engine.report.plots.style import (
    COLOURS,
    FAINT,
    NULL,
    REAL,
    figure,
    quiet,
    reference_line,
    save,
    styled,
    title,
)

_MEASURES = dict(zip(("PSI", "S", "Q", "D"), COLOURS, strict=False))
_BINS = 40
_SHOWN = 0.01
# Share of units below the left end of a histogram, which gathers them.


def draw(tables: Mapping[str, pa.Table], stem: Path) -> list[Path]:
    """Draw a row per layer: histograms of log PSI, ROC curves of PSI, AUROC under every null.

    Parameters
    ----------
    tables : mapping
        ``units`` and ``areas`` of the part ``null-baseline``.
    stem : Path
        Files are ``stem.png``, ``stem.svg`` and ``stem.pdf``.
    """
    units, areas = tables["units"], tables["areas"].to_pylist()
    if not areas:
        return []
    layers = list(dict.fromkeys(row["layer"] for row in areas))
    presets = list(dict.fromkeys(row["null"] for row in areas if row["measure"] == "PSI"))
    most = max(sum(row["layer"] == layer for row in areas) for layer in layers)
    with styled():
        made = figure(3.2 * len(presets) + 5.6, (0.6 + 0.14 * most) * len(layers) + 0.4)
        widths = [1.0] * (len(presets) + 1) + [1.5]
        axes = made.subplots(len(layers), len(widths), squeeze=False, width_ratios=widths)
        for line, layer in zip(axes, layers, strict=True):
            for panel in line:
                quiet(panel)
            for panel, preset in zip(line, presets, strict=False):
                _histogram(panel, _values(units, layer, "PSI", preset))
                title(panel, f"{layer}, {preset} preset")
            _curves(line[-2], units, layer, presets)
            title(line[-2], f"{layer}, ROC of PSI")
            _forest(line[-1], [row for row in areas if row["layer"] == layer])
            title(line[-1], f"{layer}, AUROC against random sets, 95 % intervals")
        made.suptitle("real channels against random sets of patches", x=0.01, ha="left")
    return save(made, stem)


def _values(units: pa.Table, layer: str, measure: str, null: str) -> dict[str, NDArray[Any]]:
    named = (("layer", layer), ("measure", measure), ("null", null))
    for column, name in named:
        units = units.filter(pc.equal(units[column], name))
    return {
        kind: units.filter(pc.equal(units["kind"], kind))["value"].drop_null().to_numpy()
        for kind in ("real", "null")
    }


def _histogram(panel: Any, values: dict[str, NDArray[Any]]) -> None:
    together = np.concatenate(list(values.values()))
    if not len(together):
        return
    edges = np.linspace(np.quantile(together, _SHOWN), max(together.max(), 0.0), _BINS + 1)
    for kind, colour, label in (("null", NULL, "random sets"), ("real", REAL, "channels")):
        shown = np.clip(values[kind], edges[0], None)
        weights = np.full(len(shown), 1 / max(len(shown), 1))
        panel.hist(shown, edges, weights=weights, color=colour, alpha=0.6, label=label)
    panel.set_xlabel("log PSI")
    panel.set_ylabel("share")
    panel.legend(loc="upper left")


def _curves(panel: Any, units: pa.Table, layer: str, presets: list[str]) -> None:
    for preset, colour in zip(presets, COLOURS, strict=False):
        values = _values(units, layer, "PSI", preset)
        if not all(map(len, values.values())):
            continue
        cuts = np.unique(np.concatenate(list(values.values())))[::-1]
        true, false = ((values[kind][:, None] >= cuts).mean(0) for kind in ("real", "null"))
        panel.plot([0, *false], [0, *true], color=colour, linewidth=1.2, label=preset)
    panel.plot([0, 1], [0, 1], color="#999999", linewidth=0.8, linestyle=":", label="chance")
    panel.set_xlabel("share of random sets above")
    panel.set_ylabel("share of channels above")
    panel.legend(loc="lower right")


def _forest(panel: Any, rows: list[dict[str, Any]]) -> None:
    rows = sorted(rows, key=lambda row: list(_MEASURES).index(row["measure"]))
    for place, row in enumerate(rows):
        colour = _MEASURES[row["measure"]]
        if row["auroc"] is None:
            continue
        panel.hlines(place, row["auroc_low"], row["auroc_high"], color=colour, linewidth=1.2)
        panel.plot(row["auroc"], place, "o", color=colour, markersize=3)
    for place, (one, other) in enumerate(pairwise(rows)):
        if one["measure"] != other["measure"]:
            panel.axhline(place + 0.5, color=FAINT, linewidth=0.8)
    reference_line(panel, x=0.5)
    panel.set_yticks(range(len(rows)), [f"{row['measure']}  {row['null']}" for row in rows])
    panel.set_ylim(len(rows) - 0.4, -0.6)
    panel.set_xlim(-0.02, 1.02)
    panel.grid(visible=False, axis="y")
    panel.set_xlabel("AUROC")
