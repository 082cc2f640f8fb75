"""The figures of docs/speed.md, as SVG that carries the numbers it shows.

A figure is drawn from plain data, which also stands in the file as JSON: so it can be held against
the results whatever version of matplotlib drew it.
"""

from __future__ import annotations

import html
import io
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from benchmarks.pages import Result, number, rows

_DATA = re.compile(r"<dc:description>(.*?)</dc:description>", re.DOTALL)
_LONG = re.compile(r"(\d+\.\d)\d+")
"""A tenth of a point is finer than any screen."""

_EMPTY = re.compile(r">\s*(?:<!--.*?-->)?\s*<|>\s*<g id=\"\w+\"/>\s*<")

_OURS = "psi-engine"

SHOWN = {
    "scoring": ("Seconds of the whole score beside the peers' ways", "peers"),
    "curves": ("Seconds and memory against channels, patches and draws", "curves"),
}
"""What a figure shows and its name, by the block it stands under."""

Data = dict[str, Any]


def wanted(held: Mapping[str, Result]) -> dict[str, Data]:
    """The data of every figure there are results for, by the figure's name."""
    makers = {"peers": ("scoring", peers), "curves": ("curves", curves)}
    found = {name: make(held[source]) for name, (source, make) in makers.items()}
    return {name: data for name, data in found.items() if data}


def data_of(path: Path) -> Data:
    """The numbers a figure was drawn from; nothing where it carries none."""
    found = _DATA.search(path.read_text(encoding="utf-8"))
    return json.loads(html.unescape(found[1])) if found else {}


def draw(name: str, data: Data, path: Path) -> None:
    """Draw a figure and write it as SVG."""
    from psi_engine.report.plots.style import styled

    drawn: dict[str, Callable[[Data], Any]] = {"peers": _draw_peers, "curves": _draw_curves}
    written = io.StringIO()
    with styled():
        about = {"Date": None, "Creator": None, "Description": json.dumps(data)}
        drawn[name](data).savefig(written, format="svg", metadata=about)
    text = written.getvalue()
    start = text.index("</metadata>")
    drawing = _EMPTY.sub(">\n<", _LONG.sub(r"\1", text[start:]))
    path.write_text(text[:start] + drawing, encoding="utf-8")


def peers(result: Result) -> Data:
    """Seconds of the whole score by null and route."""
    found = rows(result, what="SQD")
    return {
        null: {row["route"]: _round(row["seconds_p50"]) for row in found if row["null"] == null}
        for null in dict.fromkeys(row["null"] for row in found)
    }


def _round(value: float) -> float:
    return float(f"{value:.4g}")


def _draw_peers(data: Data) -> Any:
    from psi_engine.report.plots.style import NULL, REAL, panels, title

    most = max(len(routes) for routes in data.values())
    made, axes = panels(1, len(data), width=3.2, height=0.5 + 0.28 * most, sharey=True)
    for panel, (null, routes) in zip(axes[0], data.items(), strict=True):
        names = sorted(routes, key=routes.__getitem__, reverse=True)
        colours = [REAL if name == _OURS else NULL for name in names]
        bars = panel.barh(names, [routes[name] for name in names], 0.62, color=colours)
        panel.bar_label(bars, [f"{number(routes[name])} s" for name in names], padding=2)
        panel.set_xscale("log")
        panel.set_xlim(min(routes.values()) / 10, 8 * max(routes.values()))
        _plain(panel.xaxis)
        panel.set_xlabel("seconds")
        title(panel, null)
    return made


def _plain(axis: Any) -> None:
    """Powers of ten in full, and nothing between them."""
    from matplotlib.ticker import NullLocator

    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(lambda value, _: f"{value:,.0f}" if value >= 1 else f"{value:g}")


def curves(result: Result) -> Data:
    """Seconds and MiB against channels, patches and draws, by null and scores."""
    found: Data = {}
    for row in rows(result, what="size"):
        line = f"{', '.join(row['parts'])}: {row['null']}"
        held = found.setdefault(row["curve"], {}).setdefault(line, [])
        beyond = row["beyond_bytes"]
        held.append(
            [
                row[row["curve"]],
                _round(row["seconds_p50"]),
                None if beyond is None else beyond >> 20,
            ]
        )
    return found


def _draw_curves(data: Data) -> Any:
    from psi_engine.report.plots.style import colour_of, panels, title

    lines = list(dict.fromkeys(line for curve in data.values() for line in curve))
    colours = colour_of(lines)
    made, axes = panels(2, len(data), width=2.5, height=1.9, sharex="col", sharey="row")
    for place, (grows, curve) in enumerate(data.items()):
        above, below = axes[:, place]
        title(above, f"more {grows}")
        for line, points in curve.items():
            sizes, seconds, mib = zip(*points, strict=True)
            drawn = {
                "color": colours[line],
                "marker": "o",
                "markersize": 2.5,
                "markeredgewidth": 0,
                "linewidth": 1.2,
            }
            above.plot(sizes, seconds, label=line, **drawn)
            known = [float("nan") if x is None else max(x, 1) for x in mib]  # unknown: no point
            below.plot(sizes, known, **drawn)
        above.set_xscale("log")
        for panel in (above, below):
            panel.set_yscale("log")
            _plain(panel.xaxis)
            _plain(panel.yaxis)
        below.set_xlabel(grows)
    axes[0, 0].set_ylabel("seconds")
    axes[1, 0].set_ylabel("MiB beyond the results")
    shown: dict[str, Any] = {}
    for panel in axes[0]:
        shown |= dict(zip(*reversed(panel.get_legend_handles_labels()), strict=True))
    made.legend(shown.values(), shown, loc="outside lower center", ncols=3)
    return made
