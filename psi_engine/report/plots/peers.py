"""Agreement of PSI with the peers' measures: scatter by rank, and the coefficients."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pyarrow as pa

from psi_engine.report.plots.style import (
    colour_of,
    panels,
    reference_line,
    save,
    styled,
    title,
)

_NAMES = {"log_psi": "PSI", "s_z": "S", "q_z": "Q", "d_z": "D"}
_HEIGHT = 0.2
# Inches per peer.


def draw(tables: Mapping[str, pa.Table], stem: Path) -> list[Path]:
    """Draw Spearman's ρ of PSI, S, Q and D with each peer, turned so that agreement is positive.

    Parameters
    ----------
    tables : mapping
        ``correlations`` of the part ``peers``; nothing is drawn where there are none.
    stem : Path
        Files are ``stem.png``, ``stem.svg`` and ``stem.pdf``.
    """
    rows = tables["correlations"].to_pylist()
    if not rows:
        return []
    layers = list(dict.fromkeys(row["layer"] for row in rows))
    peers = list(dict.fromkeys(row["peer"] for row in rows if row["direction"]))
    peers += list(dict.fromkeys(row["peer"] for row in rows if not row["direction"]))
    colours = colour_of(list(_NAMES))
    with styled():
        height = 1.0 + _HEIGHT * len(peers)
        made, axes = panels(1, len(layers), width=3.4, height=height, sharey=True)
        for panel, layer in zip(axes[0], layers, strict=True):
            for offset, (measure, label) in enumerate(_NAMES.items()):
                own = [r for r in rows if (r["layer"], r["measure"]) == (layer, measure)]
                own = [row for row in own if row["spearman"] is not None]
                y = [peers.index(row["peer"]) + 0.18 * (offset - 1.5) for row in own]
                signs = [row["direction"] or 1 for row in own]
                low, value, high = (
                    [sign * row[name] for sign, row in zip(signs, own, strict=True)]
                    for name in ("spearman_low", "spearman", "spearman_high")
                )
                panel.hlines(y, low, high, color=colours[measure], linewidth=1.0, alpha=0.6)
                panel.plot(value, y, "o", color=colours[measure], markersize=2.8, label=label)
            reference_line(panel, x=0.0)
            turned = {row["peer"]: row["direction"] < 0 for row in rows}
            names = [f"{'− ' if turned[peer] else ''}{peer}" for peer in peers]
            panel.set_yticks(range(len(peers)), names)
            panel.set_ylim(len(peers) - 0.4, -0.6)
            panel.set_xlim(-1.02, 1.02)
            panel.set_xlabel("Spearman's ρ, 95 % intervals")
            title(panel, layer)
        handles, labels = axes[0, 0].get_legend_handles_labels()
        made.legend(handles, labels, loc="outside lower center", ncols=len(labels))
    return save(made, stem)
