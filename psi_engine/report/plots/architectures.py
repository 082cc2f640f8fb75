"""PSI by architecture, depth and training: drawn from the comparison of a suite alone."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from psi_engine.report.plots import style

_OFFSET = 0.012  # of the depth axis, between models of one panel


def draw(tables: Mapping[str, pa.Table], stem: Path) -> list[Path]:
    """Draw the median of log PSI over depth, a panel per preset and architecture.

    Parameters
    ----------
    tables : mapping of str to Table
        With ``comparison``, as :func:`psi_engine.bench.comparison.compare` makes it, not empty.
    stem : Path
        Files are ``stem.png``, ``stem.svg`` and ``stem.pdf``.

    Notes
    -----
    A point is a layer of one seed. Lines join the means of the seeds, one colour for each name
    (a model with its weights); bars go from the mean lower to the mean upper quartile of the
    channels. Where the depth of a layer is not known its place among the model's layers stands
    for it. Layers without a scored channel are left out.
    """
    rows = tables["comparison"].to_pylist()
    presets = list(dict.fromkeys(row["preset"] for row in rows))
    models = list(dict.fromkeys(row["model"] for row in rows))
    made, panels = style.panels(
        len(presets), len(models), width=3.0, height=2.6, sharey=True, sharex=True
    )
    with style.styled():
        for line, preset in zip(panels, presets, strict=True):
            for panel, model in zip(line, models, strict=True):
                here = [r for r in rows if r["preset"] == preset and r["model"] == model]
                _panel(panel, here)
                style.title(panel, model if len(presets) == 1 else f"{model}, {preset}")
            line[0].set_ylabel("median log PSI, quartiles of channels")
        for panel in panels[-1]:
            panel.set_xlabel("depth (share of weight layers)")
            panel.set_xlim(-0.05, 1.05)
    return style.save(made, stem)


def _panel(panel: Any, rows: list[dict[str, Any]]) -> None:
    names = list(dict.fromkeys(row["name"] for row in rows))
    colours = style.colour_of(names)
    for number, name in enumerate(names):
        mine = [row for row in rows if row["name"] == name]
        layers = list(dict.fromkeys(row["layer"] for row in mine))
        x: list[float] = []
        points: dict[str, list[float]] = {"q25": [], "median": [], "q75": []}
        for place, layer in enumerate(layers):
            seeds = [r for r in mine if r["layer"] == layer and r["log_psi_median"] is not None]
            if not seeds:
                continue
            depth = seeds[0]["depth"]
            at = (place + 1) / len(layers) if depth is None else depth
            x.append(at + (number - (len(names) - 1) / 2) * _OFFSET)
            for point, values in points.items():
                values.append(float(np.mean([row[f"log_psi_{point}"] for row in seeds])))
            dots = [row["log_psi_median"] for row in seeds]
            panel.plot([x[-1]] * len(dots), dots, ".", color=colours[name], markersize=3)
        if x:
            ends = points["q25"], points["q75"]
            panel.vlines(x, *ends, color=colours[name], linewidth=1, alpha=0.5)
            order = np.argsort(x, kind="stable")
            line = np.array(points["median"])[order]
            panel.plot(np.array(x)[order], line, color=colours[name], linewidth=1.1, label=name)
    if panel.get_legend_handles_labels()[0]:
        panel.legend(loc="best")
