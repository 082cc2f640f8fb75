"""Contact sheets: a channel's patches by cluster, where they lie, and what the clusters are called.

A sheet is laid out in inches. For each cluster a row of crops stands above a row of the pictures
they come from, so that a crop and its place share a column; where crops are whole pictures the
second row is left out.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image

from psi_engine.report.plots.style import COLOURS, DPI, INK, figure, save, styled

SHOWN = 8
"""Patches of a cluster at most."""

_TILE, _GAP = 0.6, 0.05
_LEFT, _MARGIN, _HEAD, _BETWEEN = 1.75, 0.15, 0.55, 0.2
_TEXT = 0.85
# Inches: the column of names, the edge, the title, the space between clusters, and how high the
# names of a cluster stand.
_WIDTH = _MARGIN + _LEFT + SHOWN * (_TILE + _GAP) + _MARGIN
_PIXELS = round(_TILE * DPI)
_FAINT = "#777777"
_NAMES = 3
# Concepts listed per cluster.
_LETTERS = 30
# What fits beside the tiles.

Rows = list[dict[str, Any]]


def draw(tables: Mapping[str, pa.Table], stem: Path) -> list[Path]:
    """Draw a sheet per channel, and an overview of two: the highest PSI beside a low one.

    Parameters
    ----------
    tables : mapping
        Of the part ``examples``.
    stem : Path
        The overview is ``stem.png``, ``.svg`` and ``.pdf``; the sheets go to the folder ``stem``.
    """
    channels = tables["channels"].to_pylist()
    if not channels:
        return []
    overview = _pick(channels)
    files = _write([_sheet(tables, row) for row in overview], stem)
    stem.mkdir(exist_ok=True)
    for row in channels:
        files += _write([_sheet(tables, row)], stem / sheet_name(row))
    return files


def sheet_name(row: dict[str, Any]) -> str:
    """File name of a channel's sheet, without ending."""
    return f"{row['layer']}-{row['channel']}"


def _pick(channels: Rows) -> Rows:
    """Of the last layer, the channel of highest PSI and one of low PSI, monosemantic if any is."""
    ours = [row for row in channels if row["layer"] == channels[-1]["layer"]]
    first = [row for row in ours if row["place"] == 1]
    return [first[0], first[-1]] if len(first) > 1 else first


def _sheet(tables: Mapping[str, pa.Table], channel: dict[str, Any]) -> tuple[dict[str, Any], Rows]:
    """A channel and its clusters, each with the ``patches`` to show and their pictures."""
    own = {"layer": channel["layer"], "channel": channel["channel"]}
    clusters = _where(tables["clusters"], own)
    patches = _where(tables["patches"], own)
    for row in clusters:
        members = [patch for patch in patches if patch["cluster"] == row["cluster"]]
        row["patches"] = [
            patch | {"pixels": _pixels(patch["image"])} for patch in members if patch["image"]
        ]
    return channel, clusters


def _where(table: pa.Table, values: dict[str, Any]) -> Rows:
    return [row for row in table.to_pylist() if all(row[k] == v for k, v in values.items())]


def _pixels(file: bytes) -> NDArray[np.uint8]:
    with Image.open(io.BytesIO(file)) as image:
        return np.asarray(image.convert("RGB"))


def _write(sheets: list[tuple[dict[str, Any], Rows]], stem: Path) -> list[Path]:
    height = sum(_height(clusters) for _, clusters in sheets)
    with styled():
        made = figure(_WIDTH, height)
        made.set_layout_engine("none")  # everything has its place already
        top = height
        for channel, clusters in sheets:
            _title(made, channel, top - _MARGIN)
            place = top - _HEAD
            for number, cluster in enumerate(clusters):
                _cluster(made, cluster, COLOURS[number % len(COLOURS)], place)
                place -= _block(cluster) + _BETWEEN
            top -= _height(clusters)
    return save(made, stem)


def _height(clusters: Rows) -> float:
    return _HEAD + sum(_block(cluster) + _BETWEEN for cluster in clusters) + _MARGIN


def _block(cluster: dict[str, Any]) -> float:
    return max(_TEXT, _TILE if _whole(cluster) else 2 * _TILE + _GAP)


def _whole(cluster: dict[str, Any]) -> bool:
    """Whether every crop is its whole picture."""
    return all(
        (p["x1"] - p["x0"], p["y1"] - p["y0"]) == p["pixels"].shape[1::-1]
        for p in cluster["patches"]
    )


def _title(made: Any, row: dict[str, Any], top: float) -> None:
    scores = [f"PSI {row['psi']:.3f}"]
    if row["psi_low"] is not None:
        scores[0] += f" [{row['psi_low']:.3f}, {row['psi_high']:.3f}]"
    scores += [
        f"{name} {row[key]:.3f}"
        for name, key in (("Ŝ", "s_hat"), ("Q̂", "q_hat"), ("D̂", "d_hat"))
        if row[key] is not None
    ]
    if row["psi_p_adj"] is not None:
        scores.append(f"adjusted p {row['psi_p_adj']:.2g}")
    _text(made, f"{row['layer']}:{row['channel']}", _MARGIN, top, size=10, weight="bold")
    _text(made, row["verdict"], _MARGIN + _LEFT, top, size=9)
    why = f"{row['why']}, number {row['place']} ({row['of']} channels scored in {row['layer']})"
    _text(made, why, _WIDTH - _MARGIN, top, colour=_FAINT, across="right")
    _text(made, "   ".join(scores), _MARGIN + _LEFT, top - 0.18)


def _cluster(made: Any, row: dict[str, Any], colour: str, top: float) -> None:
    patches = row["patches"]
    concepts = row["concepts"] or []
    about = [f"{row['size']} patches, silhouette {row['silhouette']:.2f}"]
    if row["label"] is not None:
        about.append(f"{row['label_share']:.0%} labelled {row['label']}")
    lines = [(line, _FAINT) for line in about]
    lines += [(f"{c['similarity']:.2f}  {c['concept']}", INK) for c in concepts[:_NAMES]]
    name = concepts[0]["concept"] if concepts else f"cluster {row['cluster']}"
    _text(made, _short(name, 24), _MARGIN, top, size=8, colour=colour, weight="bold")
    for number, (line, ink) in enumerate(lines):
        _text(made, _short(line, _LETTERS), _MARGIN, top - 0.17 - 0.125 * number, colour=ink)
    if not patches:
        _text(made, "no picture can be read any more", _MARGIN + _LEFT, top, colour=_FAINT)
        return
    crops = [p["pixels"][p["y0"] : p["y1"], p["x0"] : p["x1"]] for p in patches]
    panel = _strip(made, crops, top)
    for number in range(len(patches)):
        _frame(panel, number, (0, 0, 1, 1), colour)
    if _whole(row):
        return
    panel = _strip(made, [p["pixels"] for p in patches], top - _TILE - _GAP)
    for number, p in enumerate(patches):
        height, width = p["pixels"].shape[:2]
        box = (p["x0"] / width, p["y0"] / height, p["x1"] / width, p["y1"] / height)
        _frame(panel, number, box, colour)


def _strip(made: Any, pictures: list[NDArray[np.uint8]], top: float) -> Any:
    """Lay pictures side by side in one raster and put it into the figure, pixel by pixel."""
    step = _PIXELS + round(_GAP * DPI)
    width = step * len(pictures) - (step - _PIXELS)
    strip = np.full((_PIXELS, width, 3), 255, np.uint8)
    for number, pixels in enumerate(pictures):
        tile = Image.fromarray(np.ascontiguousarray(pixels)).resize(
            (_PIXELS, _PIXELS), Image.Resampling.BICUBIC
        )
        strip[:, number * step : number * step + _PIXELS] = np.asarray(tile)
    whole, high = made.get_size_inches()
    left, wide = _MARGIN + _LEFT, width / DPI
    panel = made.add_axes([left / whole, (top - _TILE) / high, wide / whole, _TILE / high])
    panel.imshow(strip, interpolation="nearest", aspect="auto")
    panel.set_axis_off()
    return panel


def _frame(panel: Any, number: int, box: tuple[float, float, float, float], colour: str) -> None:
    """Outline a part of a tile; ``box`` is x0, y0, x1, y1 as shares of the tile."""
    from matplotlib.patches import Rectangle
    from matplotlib.patheffects import Normal, Stroke

    left = number * (_PIXELS + round(_GAP * DPI)) - 0.5
    x0, y0, x1, y1 = (value * _PIXELS for value in box)
    panel.add_patch(
        Rectangle(
            (left + x0, y0 - 0.5), x1 - x0, y1 - y0,
            fill=False, edgecolor=colour, linewidth=1.2, clip_on=False,
            # a white rim, for boxes on their own colour
            path_effects=[Stroke(linewidth=2.2, foreground="white"), Normal()],
        )
    )  # fmt: skip


def _text(
    made: Any,
    text: str,
    x: float,
    y: float,
    *,
    size: float = 6.5,
    colour: str = INK,
    weight: str = "normal",
    across: str = "left",
) -> None:
    """Write text whose upper left (or right) corner lies at x, y inches from the lower left."""
    whole, high = made.get_size_inches()
    made.text(
        x / whole, y / high, text,
        fontsize=size, color=colour, fontweight=weight, ha=across, va="top", parse_math=False,
    )  # fmt: skip


def _short(text: str, letters: int) -> str:
    return text if len(text) <= letters else text[: letters - 1].rstrip() + "…"
