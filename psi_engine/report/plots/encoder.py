"""Scores under two encoders against each other, and the verdicts they lead to."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from psi_engine.report.plots.style import COLOURS, INK, colour_of, panels, save, styled, title
from psi_engine.types import VERDICTS

_SCATTER = {"d": "D", "d_z": "z of D", "log_psi": "log PSI"}
_SHORT = {"polysemantic": "poly", "monosemantic": "mono", "random-like": "random"}


def draw(tables: Mapping[str, pa.Table], stem: Path) -> list[Path]:
    """Draw a scatter per measure, and a table of verdicts.

    Parameters
    ----------
    tables : mapping
        Of the part ``encoder``.
    stem : Path
        Files are ``stem.png``, ``stem.svg`` and ``stem.pdf``.
    """
    agreement = tables["agreement"].to_pylist()
    pooled = agreement[-1]["layer"] if agreement else None
    there = {row["measure"]: row for row in agreement if row["layer"] == pooled}
    shown = [name for name in _SCATTER if name in there] or ["log_psi"]
    names = {row["encoder"]: row["name"] for row in tables["encoders"].to_pylist()}
    made, axes = panels(1, len(shown) + 1, width=2.7, height=2.7)
    with styled():
        for panel, name in zip(axes[0], shown, strict=False):
            _scatter(panel, tables["channels"], name, there.get(name), names)
        _verdicts(axes[0, -1], tables["verdicts"].to_pylist(), names)
    return save(made, stem)


def _scatter(
    panel: Any,
    channels: pa.Table,
    name: str,
    found: dict[str, Any] | None,
    names: dict[str, str],
) -> None:
    layers = channels["layer"].to_numpy(zero_copy_only=False)
    x, y = (
        channels[f"{name}_{end}"].to_numpy(zero_copy_only=False).astype(np.float64)
        for end in ("first", "second")
    )
    colours = colour_of(list(dict.fromkeys(layers)))
    for layer, colour in colours.items():
        ours = layers == layer
        panel.plot(
            x[ours], y[ours], "o", color=colour, markersize=2.6, alpha=0.65, mew=0, label=layer
        )
    panel.set_xlabel(f"{_SCATTER[name]}, {names['first']}")
    panel.set_ylabel(f"{_SCATTER[name]}, {names['second']}")
    said = _SCATTER[name]
    if found is not None and found["spearman"] is not None:
        said += (
            f": Spearman {found['spearman']:.2f} "
            f"[{found['spearman_low']:.2f}, {found['spearman_high']:.2f}]"
        )
    title(panel, said)
    if len(colours) > 1:
        panel.legend(loc="best", fontsize=6, handletextpad=0.1)


def _verdicts(panel: Any, rows: list[dict[str, Any]], names: dict[str, str]) -> None:
    layer = rows[-1]["layer"]
    words = VERDICTS[:3]
    counts = np.zeros((3, 3), int)
    for row in rows:
        if row["layer"] == layer:
            counts[words.index(row["second"]), words.index(row["first"])] = row["channels"]
    most = max(1, counts.max())
    panel.grid(visible=False)
    for (second, first), count in np.ndenumerate(counts):
        panel.add_patch(_cell(first, second, COLOURS[0], 0.65 * count / most))
        panel.text(first, second, count, ha="center", va="center", color=INK)
    panel.set_xlim(-0.5, 2.5)
    panel.set_ylim(-0.5, 2.5)
    panel.set_xticks(range(3), [_SHORT[word] for word in words])
    panel.set_yticks(range(3), [_SHORT[word] for word in words])
    panel.set_xlabel(f"verdict, {names['first']}")
    panel.set_ylabel(f"verdict, {names['second']}")
    share = np.trace(counts) / max(1, counts.sum())
    title(panel, f"verdicts ({layer}): {share:.0%} the same")


def _cell(x: int, y: int, colour: str, alpha: float) -> Any:
    from matplotlib.patches import Rectangle

    return Rectangle((x - 0.47, y - 0.47), 0.94, 0.94, color=colour, alpha=alpha, linewidth=0)
