"""The figure of the ground truth, drawn from its table and nothing else."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa

from psi_engine.report.plots.style import (
    COLOURS,
    FAINT,
    NULL,
    figure,
    quiet,
    reference_line,
    save,
    styled,
)
from psi_engine.validation.contrasts import WORST
from psi_engine.validation.headline import headline

_COLOURS = {"unrelated": COLOURS[0], "related": COLOURS[1], "projection": NULL}
_TITLES = {
    "unrelated": "unrelated classes",
    "related": "related classes",
    "projection": "unrelated classes against random projections",
}
_ROW = 0.2
# Inches per measure.


def draw(table: pa.Table, stem: Path) -> list[Path]:
    """Draw the worst contrast of each measure on held-out classes, with its interval.

    Parameters
    ----------
    table : pyarrow.Table
        As :func:`psi_engine.validation.contrasts.judge` gives it, of one suite or more.
    stem : Path
        Files are ``stem.png``, ``stem.svg`` and ``stem.pdf``.
    """
    suites = table["suite"].unique().to_pylist()
    listed = [headline(table, suite) for suite in suites]
    with styled():
        made = figure(6.4 * len(suites), 1.2 + _ROW * max(map(len, listed)))
        panels = made.subplots(1, len(suites), squeeze=False)[0]
        for panel, suite, rows in zip(panels, suites, listed, strict=True):
            _panel(panel, suite, rows)
        handles, labels = panels[-1].get_legend_handles_labels()
        made.legend(handles, labels, loc="outside upper right", ncols=3)
        made.suptitle(
            "held-out classes, 95 % bootstrap intervals of the worst contrast (pessimistic); "
            "with labels Q is circular: planted kinds are made of classes",
            x=0.01,
            ha="left",
        )
    return save(made, stem)


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
            panel.axhline(place + 0.5, color=FAINT, linewidth=0.8)
    quiet(panel)
    reference_line(panel, x=0.5)
    panel.set_yticks(range(len(rows)), [row["measure"] for row in rows])
    panel.set_ylim(len(rows) - 0.4, -0.6)
    panel.set_xlim(-0.02, 1.02)
    panel.set_xlabel("AUROC of the worst contrast")
    panel.set_title(suite, loc="left", fontsize=9)
    panel.grid(visible=False, axis="y")
    panel.spines["left"].set_visible(False)
