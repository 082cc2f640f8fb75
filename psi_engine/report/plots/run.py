"""Figures of a plain run, from its tables alone: PSI and verdicts by layer, components, nulls."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from psi_engine.artifacts import Run
from psi_engine.report.plots.style import (
    COLOURS,
    INK,
    NULL,
    panels,
    reference_line,
    save,
    styled,
    title,
)
from psi_engine.types import COMPONENTS, VERDICTS

VERDICT_COLOURS = dict(zip(VERDICTS, (COLOURS[1], COLOURS[0], "#b0b0b0", "#e4e4e4"), strict=True))
"""One colour per verdict, the same in every figure."""

_ACROSS = 4
# Panels side by side in a figure with one for each layer.
_MOST_POINTS = 8000
# Points of a figure that are drawn as such; more would make its vector files too large to open.
_LOW, _HIGH = 2, 38
# Places of the 5 % and 95 % quantile among the 41.


def draw_run(run: Run, folder: Path) -> list[Path]:
    """Draw the figures of a finished run.

    Parameters
    ----------
    run : Run
    folder : Path
        Made if need be; files are ``run-psi``, ``run-verdicts``, ``run-components`` and
        ``run-nulls``, each ``.png``, ``.svg`` and ``.pdf``.

    Returns
    -------
    list of Path
        What was written: nothing of what the run has no channel or no null for.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tables = {"channels": run.channels}
    if (run.path / "nulls.parquet").is_file():  # of an earlier version there is none
        tables["nulls"] = run.nulls
    files = []
    for name, draw in FIGURES.items():
        files += draw(tables, folder / f"run-{name}")
    return files


def draw_psi(tables: Mapping[str, pa.Table], stem: Path) -> list[Path]:
    """Draw the distribution of log PSI of each layer: quartiles, whiskers, every channel.

    Parameters
    ----------
    tables : mapping
        ``channels`` of the run.
    stem : Path
        Files are ``stem.png``, ``stem.svg`` and ``stem.pdf``.
    """
    scored = _scored(tables["channels"], "log_psi")
    layers, raster = _layers(scored), len(scored) > _MOST_POINTS
    if not layers:
        return []
    with styled():
        made, axes = panels(1, 1, width=6.4, height=0.9 + 0.34 * len(layers))
        panel = axes[0, 0]
        for place, layer in enumerate(layers):
            mine = _of(scored, layer)
            values = _numbers(mine, "log_psi")
            colours = [VERDICT_COLOURS[word] for word in mine["verdict"].to_pylist()]
            # a spread that only the order of the channels decides: the same bytes every time
            spread = ((np.arange(len(values)) * 0.618034) % 1 - 0.5) * 0.5
            panel.scatter(
                values, place + spread, s=5, c=colours, alpha=0.7, linewidths=0, rasterized=raster
            )
            low, quarter, median, three, high = np.quantile(values, (0.05, 0.25, 0.5, 0.75, 0.95))
            panel.hlines(place, low, high, color=INK, linewidth=0.8)
            panel.hlines(place, quarter, three, color=INK, linewidth=2.6)
            panel.plot(median, place, "o", color="white", markeredgecolor=INK, markersize=4)
        named = [f"{layer}  ({len(_of(scored, layer))})" for layer in layers]
        panel.set_yticks(range(len(layers)), named)
        panel.set_ylim(len(layers) - 0.4, -0.6)
        panel.grid(visible=False, axis="y")
        panel.set_xlabel("log PSI; bars: middle half, lines: middle nine tenths of the channels")
        _verdict_legend(made, set(scored["verdict"].to_pylist()))
    return save(made, stem)


def draw_verdicts(tables: Mapping[str, pa.Table], stem: Path) -> list[Path]:
    """Draw how many channels of each layer have which verdict; see :func:`draw_psi`."""
    channels = tables["channels"]
    layers = _layers(channels)
    if not layers:
        return []
    with styled():
        made, axes = panels(1, 1, width=6.4, height=0.8 + 0.28 * len(layers))
        panel = axes[0, 0]
        for place, layer in enumerate(layers):
            words = _of(channels, layer)["verdict"].to_pylist()
            left = 0.0
            for verdict, colour in VERDICT_COLOURS.items():
                count = words.count(verdict)
                share = count / len(words)
                panel.barh(place, share, left=left, color=colour, height=0.7)
                if count:
                    dark = verdict in VERDICTS[:2]
                    panel.text(
                        left + share / 2, place, str(count), ha="center", va="center",
                        color="white" if dark else INK, fontsize=6, clip_on=True,
                    )  # fmt: skip
                left += share
        panel.set_yticks(range(len(layers)), layers)
        panel.set_ylim(len(layers) - 0.4, -0.6)
        panel.set_xlim(0, 1)
        panel.grid(visible=False, axis="y")
        panel.set_xlabel("share of the layer's channels; numbers are channels")
        _verdict_legend(made, set(channels["verdict"].to_pylist()))
    return save(made, stem)


def draw_components(tables: Mapping[str, pa.Table], stem: Path) -> list[Path]:
    """Draw z of S against z of D, or of Q without D, a panel a layer; see :func:`draw_psi`."""
    channels = tables["channels"]
    other = next((x for x in ("d", "q") if pc.any(pc.is_valid(channels[f"{x}_z"])).as_py()), None)
    if other is None:
        return []
    scored = _scored(_scored(channels, "s_z"), f"{other}_z")
    layers, raster = _layers(scored), len(scored) > _MOST_POINTS
    with styled():
        made, axes = _one_each(layers)
        for panel, layer in zip(axes.flat, layers, strict=False):
            mine = _of(scored, layer)
            colours = [VERDICT_COLOURS[word] for word in mine["verdict"].to_pylist()]
            x, y = _numbers(mine, "s_z"), _numbers(mine, f"{other}_z")
            panel.scatter(x, y, s=7, c=colours, alpha=0.8, linewidths=0, rasterized=raster)
            reference_line(panel, x=0.0, y=0.0)
            panel.set_xlabel("z of S")
            panel.set_ylabel(f"z of {other.upper()}")
            title(panel, f"{layer}, {len(mine)} channels")
        _verdict_legend(made, set(scored["verdict"].to_pylist()))
    return save(made, stem)


def draw_nulls(tables: Mapping[str, pa.Table], stem: Path) -> list[Path]:
    """Draw each component's values beside its null: the middle nine tenths and the median of it.

    Channels stand in the order of their z. ``tables`` also holds ``nulls``; see :func:`draw_psi`.
    """
    nulls, channels = tables.get("nulls"), tables["channels"]
    if nulls is None or not len(nulls):
        return []
    layers, raster = _layers(nulls), len(nulls) > _MOST_POINTS
    there = [x for x in COMPONENTS if x in set(nulls["component"].to_pylist())]
    with styled():
        made, axes = panels(len(layers), len(there), width=2.9, height=2.0)
        for line, layer in zip(axes, layers, strict=True):
            for panel, component in zip(line, there, strict=True):
                _against_null(panel, _of(channels, layer), _of(nulls, layer), component, raster)
                name = ", ".join(sorted(set(_named(_of(nulls, layer), component))))
                title(panel, f"{layer}, {component.upper()} against {name}")
        for panel in axes[-1]:
            panel.set_xlabel("channels, least z first")
        made.suptitle(
            "points: channels; grey: median and middle nine tenths of their null's draws",
            x=0.01,
            ha="left",
        )
    return save(made, stem)


def _against_null(
    panel: Any, channels: pa.Table, nulls: pa.Table, component: str, raster: bool
) -> None:
    mine = nulls.filter(pc.equal(nulls["component"], component))
    drawn = dict(zip(mine["channel"].to_pylist(), mine["quantiles"].to_pylist(), strict=True))
    rows = [row for row in channels.to_pylist() if row["channel"] in drawn]
    rows.sort(key=lambda row: (row[f"{component}_z"], row["channel"]))
    if not rows:
        return
    quantiles = np.array([drawn[row["channel"]] for row in rows])
    place = np.arange(len(rows))
    panel.fill_between(
        place, quantiles[:, _LOW], quantiles[:, _HIGH], color=NULL, alpha=0.35, linewidth=0,
        step="mid",
    )  # fmt: skip
    panel.plot(place, quantiles[:, 20], color=NULL, linewidth=0.8, drawstyle="steps-mid")
    values = [row[component] for row in rows]
    panel.scatter(place, values, s=4, c=COLOURS[0], linewidths=0, rasterized=raster)
    panel.grid(visible=False, axis="x")


def _named(nulls: pa.Table, component: str) -> list[str]:
    return nulls.filter(pc.equal(nulls["component"], component))["null"].to_pylist()


def _one_each(layers: Sequence[str]) -> tuple[Any, Any]:
    """A grid of panels, one a layer; those left over are taken away."""
    rows = -(-len(layers) // _ACROSS)
    made, axes = panels(rows, min(len(layers), _ACROSS), width=2.6, height=2.4)
    for panel in axes.flat[len(layers) :]:
        panel.remove()
    return made, axes


def _verdict_legend(made: Any, there: set[str]) -> None:
    from matplotlib.patches import Patch

    named = [(word, colour) for word, colour in VERDICT_COLOURS.items() if word in there]
    shown = [Patch(color=colour, label=word) for word, colour in named]
    made.legend(handles=shown, loc="outside upper right", ncols=len(VERDICTS))


def _layers(table: pa.Table) -> list[str]:
    return pc.unique(table["layer"]).to_pylist()


def _of(table: pa.Table, layer: str) -> pa.Table:
    return table.filter(pc.equal(table["layer"], layer))


def _scored(table: pa.Table, column: str) -> pa.Table:
    return table.filter(pc.is_valid(table[column]))


def _numbers(table: pa.Table, column: str) -> NDArray[np.float64]:
    return table[column].to_numpy()


FIGURES: dict[str, Callable[[Mapping[str, pa.Table], Path], list[Path]]] = {
    "psi": draw_psi,
    "verdicts": draw_verdicts,
    "components": draw_components,
    "nulls": draw_nulls,
}
"""The figures of a run, by the last part of their files' names."""
