"""The histogram of k̂: real channels beside random sets, for each layer and range of k."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pyarrow as pa

from psi_engine.report.plots.style import NULL, REAL, panels, save, styled, title

_BARS = (("real", REAL, "channels", -0.2), ("null", NULL, "random sets", 0.2))


def draw(tables: Mapping[str, pa.Table], stem: Path) -> list[Path]:
    """Draw the share of channels with each k̂ from the table ``counts``: a row per layer.

    Parameters
    ----------
    tables : mapping
        Of the part ``k-hat``.
    stem : Path
        Files are ``stem.png``, ``stem.svg`` and ``stem.pdf``.
    """
    rows = tables["counts"].to_pylist()
    layers = list(dict.fromkeys(row["layer"] for row in rows))
    ranges = list(dict.fromkeys((row["k_min"], row["k_max"]) for row in rows))
    with styled():
        made, axes = panels(len(layers), len(ranges), width=2.2, height=1.7, sharey=True)
        for line, layer in zip(axes, layers, strict=True):
            for panel, (low, high) in zip(line, ranges, strict=True):
                for kind, colour, label, shift in _BARS:
                    shown = [
                        row
                        for row in rows
                        if (row["layer"], row["kind"]) == (layer, kind)
                        and (row["k_min"], row["k_max"]) == (low, high)
                        and row["share"] is not None
                    ]
                    places = [row["k"] + shift for row in shown]
                    panel.bar(places, [r["share"] for r in shown], 0.38, color=colour, label=label)
                panel.set_xticks(range(low, high + 1))
                title(panel, f"{layer}, k = {low}–{high}")
            line[0].set_ylabel("share")
        for panel in axes[-1]:
            panel.set_xlabel("k̂")
        handles, labels = axes[0, 0].get_legend_handles_labels()
        made.legend(handles, labels, loc="outside lower center", ncols=2)
    return save(made, stem)
