"""The figure of the ground truth, drawn from its table and nothing else."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa

from psi_engine.artifacts import atomic
from psi_engine.validation.contrasts import WORST
from psi_engine.validation.headline import headline

_COLOURS = {"unrelated": "#1b5e8c", "related": "#c77b2b", "projection": "#9a9a9a"}
_TITLES = {
    "unrelated": "unrelated classes",
    "related": "related classes",
    "projection": "unrelated classes against random projections",
}
_INK = "#333333"
_ROW = 0.2
# Inches per measure.
_DPI = 160


def draw(table: pa.Table, stem: Path) -> list[Path]:
    """Draw the worst contrast of each measure on held-out classes, with its interval.

    Parameters
    ----------
    table : pyarrow.Table
        As :func:`psi_engine.validation.contrasts.judge` gives it, of one suite or more.
    stem : Path
        Files are ``stem.png`` and ``stem.svg``.
    """
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    suites = table["suite"].unique().to_pylist()
    listed = [headline(table, suite) for suite in suites]
    height = 1.2 + _ROW * max(map(len, listed))
    with matplotlib.rc_context({"svg.hashsalt": "psi-engine", "font.size": 7}):
        figure = Figure(figsize=(6.4 * len(suites), height), dpi=_DPI, layout="constrained")
        FigureCanvasAgg(figure)
        panels = figure.subplots(1, len(suites), squeeze=False)[0]
        for panel, suite, rows in zip(panels, suites, listed, strict=True):
            _panel(panel, suite, rows)
        handles, labels = panels[-1].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper right", ncols=3, frameon=False)
        figure.suptitle(
            "held-out classes, 95 % bootstrap intervals of the worst contrast (pessimistic); "
            "with labels Q is circular: planted kinds are made of classes",
            x=0.01,
            ha="left",
            color=_INK,
        )
        figure.draw_without_rendering()  # lays out, which is most of the work, once for both
        figure.set_layout_engine("none")
        files = []
        for ending, facts in (("png", {"Software": None}), ("svg", {"Date": None})):
            path = stem.with_name(f"{stem.name}.{ending}")
            with atomic(path) as temporary:
                figure.savefig(temporary, format=ending, dpi=_DPI, metadata=facts)
            files.append(path)
    return files


def _panel(panel: Any, suite: str, rows: list[dict[str, Any]]) -> None:
    there = [name for name in WORST if any(name in row for row in rows)]
    for offset, name in enumerate(there):
        shift = 0.22 * (offset - (len(there) - 1) / 2)
        y = [place + shift for place, row in enumerate(rows) if name in row]
        value, low, high = (
            [row[name + end] for row in rows if name in row] for end in ("", "_low", "_high")
        )
        colour = _COLOURS[name]
        panel.hlines(y, low, high, color=colour, linewidth=1.1, alpha=0.55)
        panel.plot(value, y, "o", color=colour, markersize=3.2, label=_TITLES[name])
    for place, (one, other) in enumerate(pairwise(rows)):
        if one["family"] != other["family"]:
            panel.axhline(place + 0.5, color="#dddddd", linewidth=0.8)
    panel.axvline(0.5, color="#bbbbbb", linewidth=0.8, linestyle=":")
    panel.set_yticks(range(len(rows)), [row["measure"] for row in rows], color=_INK)
    panel.set_ylim(len(rows) - 0.4, -0.6)
    panel.set_xlim(-0.02, 1.02)
    panel.set_xlabel("AUROC of the worst contrast", color=_INK)
    panel.set_title(suite, loc="left", color=_INK, fontsize=9)
    panel.tick_params(length=0, colors=_INK)
    panel.grid(axis="x", color="#eeeeee", linewidth=0.6)
    panel.set_axisbelow(True)
    for side in ("top", "right", "left"):
        panel.spines[side].set_visible(False)
