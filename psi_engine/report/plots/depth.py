"""Violins of log PSI, and of what it is made of, over the layers of a run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from psi_engine.report.plots.style import INK, REAL, panels, save, styled, title

_NAMES = {
    "log_psi": "log PSI",
    "s_z": "z of S",
    "q_z": "z of Q",
    "d_z": "z of D",
    "clarity": "clarity",
}
_SHOWN = (0.005, 0.995)
# Quantiles over all layers between which violins are drawn; few channels lie far out.


def draw(tables: Mapping[str, pa.Table], stem: Path) -> list[Path]:
    """Draw a panel per measure: a violin per layer with its quartiles and median.

    Parameters
    ----------
    tables : mapping
        ``values`` and ``layers`` of the part ``depth``.
    stem : Path
        Files are ``stem.png``, ``stem.svg`` and ``stem.pdf``.
    """
    values, summary = tables["values"], tables["layers"].to_pylist()
    layers = list(dict.fromkeys(row["layer"] for row in summary))
    shown = [name for name in _NAMES if values[name].null_count < len(values)]
    with styled():
        made, axes = panels(
            1, max(len(shown), 1), width=max(1.8, 0.4 * len(layers) + 1), height=2.6
        )
        for panel, name in zip(axes[0], shown, strict=False):
            ends = np.quantile(values[name].drop_null().to_numpy(), _SHOWN)
            for row in (row for row in summary if row["measure"] == name):
                own = values.filter(pc.equal(values["layer"], row["layer"]))[name].drop_null()
                inside = np.clip(own.to_numpy(), *ends)
                place = row["place"]
                if len(np.unique(inside)) > 1:
                    bodies = panel.violinplot([inside], [place], widths=0.8, showextrema=False)
                    for body in bodies["bodies"]:
                        body.set(facecolor=REAL, alpha=0.35)
                if row["median"] is not None:
                    quartiles = row["lower_quartile"], row["upper_quartile"]
                    panel.vlines(place, *quartiles, color=INK, linewidth=2.5)
                    panel.plot(place, row["median"], "o", color="white", markersize=3, mec=INK)
            panel.set_xticks(range(len(layers)), layers, rotation=30, ha="right")
            title(panel, _NAMES[name])
    return save(made, stem)
