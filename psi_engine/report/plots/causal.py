"""The bars of the swaps: what each condition does to the target site's activation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

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

_WIDTH = {1: 0.62, 2: 0.38}
# Of a bar, by how many blends stand side by side.


def draw(tables: Mapping[str, pa.Table], stem: Path) -> list[Path]:
    """Draw mean ΔA of each condition with its interval: rows of layers, columns of hosts.

    Parameters
    ----------
    tables : mapping
        ``summary`` as ``causal_summary.parquet``; only pooled rows are drawn. Above a control
        stands its Holm-corrected p of the paired t-test against aligned, hard paste first.
        Nothing is drawn where there are none.
    stem : Path
        Files are ``stem.png``, ``stem.svg`` and ``stem.pdf``.
    """
    rows = [row for row in tables["summary"].to_pylist() if row["level"] != "channel"]
    layers = list(dict.fromkeys(row["layer"] for row in rows if row["level"] == "layer"))
    places: list[str | None] = layers if len(layers) == 1 else [*layers, None]
    hosts = list(dict.fromkeys(row["hosts"] for row in rows))
    blends = list(dict.fromkeys(row["blend"] for row in rows))
    if not rows:
        return []
    with styled():
        made, axes = panels(len(places), len(hosts), width=3.4, height=2.3, sharey="row")
        for line, layer in zip(axes, places, strict=True):
            for panel, host in zip(line, hosts, strict=True):
                mine = [row for row in rows if (row["layer"], row["hosts"]) == (layer, host)]
                count = max((row["n"] for row in mine), default=0)
                title(panel, f"{layer or 'all layers'}, {host} hosts, {count} channels")
                if mine:
                    _panel(panel, mine, blends)
            line[0].set_ylabel("ΔA / activation range")
        handles, labels = axes[0, 0].get_legend_handles_labels()
        made.legend(handles, labels, loc="outside lower center", ncols=2)
    return save(made, stem)


def _panel(panel: Any, rows: Sequence[Mapping[str, Any]], blends: Sequence[str]) -> None:
    width = _WIDTH[len(blends)]
    controls = list(dict.fromkeys(row["control"] for row in rows))
    for number, blend in enumerate(blends):
        ours = {row["control"]: row for row in rows if row["blend"] == blend}
        if not ours:
            continue
        one = ours[controls[0]]
        bars = [tuple(one[x] for x in ("mean_aligned", "aligned_low", "aligned_high"))]
        bars += [
            tuple(ours[name][x] for x in ("mean_control", "control_low", "control_high"))
            for name in controls
        ]
        shift = (number - (len(blends) - 1) / 2) * width
        x = [place + shift for place in range(len(bars))]
        heights = [mean or 0.0 for mean, _, _ in bars]
        colours = [COLOURS[0]] + [NULL] * len(controls)
        faint = 1.0 if blend == blends[0] else 0.5
        panel.bar(x, heights, width * 0.92, color=colours, alpha=faint, label=f"{blend} paste")
        for at, (_, low, high) in zip(x, bars, strict=True):
            if low is not None:
                panel.plot([at, at], [low, high], color=INK, linewidth=0.9)
        if number == 0:
            tops = [max(0.0, *(end or 0.0 for end in bar)) for bar in bars]
            for at, top, name in zip(range(1, len(bars)), tops[1:], controls, strict=True):
                _mark(panel, at, top, ours[name]["t_p_holm"])
    reference_line(panel, y=0.0)
    panel.grid(axis="x", visible=False)
    panel.set_xticks(
        range(len(controls) + 1), [name.replace("-", "\n", 1) for name in ("aligned", *controls)]
    )
    panel.margins(y=0.15)


def _mark(panel: Any, x: float, y: float, p: float | None) -> None:
    """Write a control's p above its bar."""
    if p is not None:
        text = "p < 0.001" if p < 0.001 else f"p = {p:.3f}"
        panel.annotate(
            text, (x, y), (0, 2), textcoords="offset points", ha="center", fontsize=5.5, color=INK
        )
