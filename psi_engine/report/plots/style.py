"""One look for every figure: colours that the colour-blind can tell apart, quiet axes, three files.

Colours are Okabe and Ito's ("Color Universal Design", 2008), without their yellow, which is faint
on white. Matplotlib is imported when the first figure is made.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from psi_engine.artifacts import atomic

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
"""In the order they are given out; the first two are for what a figure is about."""

REAL, NULL = COLOURS[0], "#8a8a8a"
"""Real channels, and what stands for chance."""

INK, FAINT = "#333333", "#dddddd"
DPI = 160


def figure(width: float, height: float) -> Any:
    """Make an empty matplotlib figure of a size in inches, laid out by constraints."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    made = Figure(figsize=(width, height), dpi=DPI, layout="constrained")
    FigureCanvasAgg(made)
    return made


def panels(
    rows: int, columns: int, *, width: float = 3.2, height: float = 2.4, **options: Any
) -> tuple[Any, Any]:
    """Make a figure of panels in the house style.

    Parameters
    ----------
    rows, columns : int
    width, height : float
        Of a panel, in inches.
    **options
        As for matplotlib's ``Figure.subplots``.

    Returns
    -------
    figure, ndarray of Axes (rows, columns)
    """
    with styled():
        made = figure(width * columns, height * rows)
        axes = made.subplots(rows, columns, squeeze=False, **options)
    for panel in axes.flat:
        quiet(panel)
    return made, axes


def quiet(panel: Any) -> None:
    """Take the frame and the ticks of a panel away, leave faint lines to read values off."""
    panel.tick_params(length=0, colors=INK)
    panel.grid(color="#eeeeee", linewidth=0.6)
    panel.set_axisbelow(True)
    for side in ("top", "right"):
        panel.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        panel.spines[side].set_color(FAINT)


def title(panel: Any, text: str) -> None:
    """Put a title at a panel's left."""
    panel.set_title(text, loc="left", color=INK, fontsize=8)


def colour_of(names: Sequence[str]) -> dict[str, str]:
    """Give names their colours, in order; more names than colours start over."""
    return {name: COLOURS[place % len(COLOURS)] for place, name in enumerate(names)}


def reference_line(panel: Any, *, x: float | None = None, y: float | None = None) -> None:
    """Draw a dotted line at a value to compare with, such as chance."""
    if x is not None:
        panel.axvline(x, color="#999999", linewidth=0.8, linestyle=":")
    if y is not None:
        panel.axhline(y, color="#999999", linewidth=0.8, linestyle=":")


FORMS: dict[str, dict[str, None]] = {
    "png": {"Software": None},
    "svg": {"Date": None},
    "pdf": {"Creator": None, "Producer": None, "CreationDate": None},
}
"""Kinds of file each figure is written as, and what they must not say: same tables, same bytes."""


def save(made: Any, stem: Path) -> list[Path]:
    """Write a figure as ``stem.png``, ``stem.svg`` and ``stem.pdf``.

    Text stays text in the SVG, in the reader's font; the PDF embeds TrueType fonts.
    """
    files = []
    with styled():
        made.draw_without_rendering()  # lays out, which is most of the work, once for all
        made.set_layout_engine("none")
        for ending, facts in FORMS.items():
            path = stem.with_name(f"{stem.name}.{ending}")
            with atomic(path) as temporary:
                made.savefig(temporary, format=ending, dpi=DPI, metadata=facts)
            files.append(path)
    return files


@contextlib.contextmanager
def styled() -> Iterator[None]:
    """Matplotlib's settings of the house style, for the block only; draw inside it too."""
    import matplotlib

    settings: Any = {
        "svg.hashsalt": "psi-engine",
        "svg.fonttype": "none",
        "pdf.fonttype": 42,
        "font.size": 7,
        "axes.labelcolor": INK,
        "text.color": INK,
        "legend.frameon": False,
    }
    with matplotlib.rc_context(settings):
        yield
