"""Do rankings agree: matrices of ρ by axis, and ρ by component with intervals (Fig. 4)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from psi_engine.report.plots.style import (
    COLOURS,
    INK,
    colour_of,
    panels,
    reference_line,
    save,
    styled,
    title,
)

_TITLES = {
    "K": "patches, K", "seed": "seed", "M": "draws of a null, M", "k": "range of k",
    "solver": "solver × seedings", "patch": "side of crops", "sites": "sites of an image",
}  # fmt: skip
_HALVES = "images"
_MEASURES = {
    "log_psi": "log PSI", "log_psi_without_q": "log PSI without Q",
    "s_z": "S, z", "q_z": "Q, z", "d_z": "D, z", "s": "S", "q": "Q", "d": "D",
}  # fmt: skip


def draw(tables: Mapping[str, pa.Table], stem: Path) -> list[Path]:
    """Draw the part ``stability``.

    Parameters
    ----------
    tables : mapping
        ``correlations`` and ``reasons`` of the part.
    stem : Path
        ``stem.png``, ``.svg`` and ``.pdf``: the matrices of log PSI, a row of panels per layer.
        ``stem-components.png``, ``.svg`` and ``.pdf``: each measure between the pairs that
        have a target and between halves of the images.
    """
    rows = tables["correlations"].to_pylist()
    pairs = [row for row in tables["reasons"].to_pylist() if row["target"] is not None]
    beside = stem.with_name(f"{stem.name}-components")
    return [*_matrices(rows, stem), *_components(rows, pairs, beside)]


def _matrices(rows: list[dict[str, Any]], stem: Path) -> list[Path]:
    shown = [row for row in rows if row["measure"] == "log_psi" and row["axis"] != _HALVES]
    layers = list(dict.fromkeys(row["layer"] for row in shown))
    axes = list(dict.fromkeys(row["axis"] for row in shown))
    with styled():
        made, grid = panels(len(layers), len(axes), width=2.1, height=2.1)
        for line, layer in zip(grid, layers, strict=True):
            for panel, axis in zip(line, axes, strict=True):
                own = [row for row in shown if (row["layer"], row["axis"]) == (layer, axis)]
                _matrix(panel, own)
                title(panel, f"{layer}: {_TITLES[axis]}")
    return save(made, stem)


def _matrix(panel: Any, rows: list[dict[str, Any]]) -> None:
    names = list(dict.fromkeys(name for row in rows for name in (row["one"], row["other"])))
    values = np.eye(len(names))
    for row in rows:
        place = names.index(row["one"]), names.index(row["other"])
        rho = np.nan if row["spearman"] is None else row["spearman"]
        values[place] = values[place[::-1]] = rho
    panel.imshow(values, cmap="Blues", vmin=0, vmax=1.6)
    for (y, x), rho in np.ndenumerate(values):
        if x != y:
            text = "–" if np.isnan(rho) else f"{rho:.2f}"
            panel.text(x, y, text, ha="center", va="center", color=INK, fontsize=6)
    panel.grid(visible=False)
    panel.set_xticks(range(len(names)), names, rotation=30 if max(map(len, names)) > 5 else 0)
    panel.set_yticks(range(len(names)), names)


def _components(rows: list[dict[str, Any]], pairs: list[dict[str, Any]], stem: Path) -> list[Path]:
    """A panel per layer: measures down, a dot and its interval per comparison."""
    layers = list(dict.fromkeys(row["layer"] for row in rows))
    targets: dict[str, tuple[str, str, float | None]] = {}
    for row in pairs:  # the first seed pair stands for the others
        targets.setdefault(row["axis"], (row["one"], row["other"], row["target"]))
    wanted = {
        f"{axis} {one} / {other}": (axis, one, other) for axis, (one, other, _) in targets.items()
    }
    split = next(((r["one"], r["other"]) for r in rows if r["axis"] == _HALVES), None)
    if split is not None:
        wanted["halves of the images"] = (_HALVES, *split)
    measures = [m for m in _MEASURES if any(row["measure"] == m for row in rows)]
    colours = colour_of(list(wanted))
    lowest = [row["spearman_low"] for row in rows if row["spearman_low"] is not None] or [0.0]
    with styled():
        made, grid = panels(
            1, len(layers), width=2.8, height=0.5 + 0.28 * len(measures), sharey=True
        )
        for panel, layer in zip(grid[0], layers, strict=True):
            for number, (label, pair) in enumerate(wanted.items()):
                shift = 0.22 * (number - (len(wanted) - 1) / 2)
                _dots(panel, rows, layer, pair, measures, shift, colours[label], label)
            for place, (_, _, target) in enumerate(targets.values()):
                panel.plot([target], [-0.62], marker="v", color=COLOURS[place], markersize=4, mew=0)
            reference_line(panel, x=0.0)
            panel.set_xlim(min(lowest) - 0.03, 1.03)
            panel.set_ylim(len(measures) - 0.4, -0.75)
            panel.set_yticks(range(len(measures)), [_MEASURES[m] for m in measures])
            panel.set_xlabel("Spearman's ρ (▾ target of log PSI)")
            title(panel, layer)
        handles, labels = grid[0, 0].get_legend_handles_labels()
        made.legend(handles, labels, loc="outside lower center", ncols=3)
    return save(made, stem)


def _dots(
    panel: Any,
    rows: list[dict[str, Any]],
    layer: str,
    pair: tuple[str, str, str],
    measures: list[str],
    shift: float,
    colour: str,
    label: str,
) -> None:
    own = [
        row for row in rows
        if (row["layer"], row["axis"], row["one"], row["other"]) == (layer, *pair)
        and row["spearman"] is not None
    ]  # fmt: skip
    y = [measures.index(row["measure"]) + shift for row in own]
    low, high, rho = ([row[f"spearman{end}"] for row in own] for end in ("_low", "_high", ""))
    panel.hlines(y, low, high, color=colour, linewidth=1.1, alpha=0.55)
    panel.plot(rho, y, "o", color=colour, markersize=3.2, label=label)
