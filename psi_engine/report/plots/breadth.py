"""D and log PSI under one set of words against another, and the verdicts under each."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from psi_engine.report.plots.style import (
    COLOURS,
    FAINT,
    colour_of,
    panels,
    reference_line,
    save,
    styled,
    title,
)
from psi_engine.types import VERDICTS

_MEASURES = {"d_z": "z of D", "log_psi": "log PSI"}
_VERDICT_COLOURS = (COLOURS[0], COLOURS[1], "#8a8a8a", FAINT)


def draw(tables: Mapping[str, pa.Table], stem: Path) -> list[Path]:
    """Draw the part ``breadth``.

    Parameters
    ----------
    tables : mapping
        ``agreement``, ``channels`` and ``vocabularies`` of the part.
    stem : Path
        ``stem.png``, ``.svg`` and ``.pdf``: a column per comparison with the run's own words (z of
        D above, log PSI below), and the verdicts under each set of words.
    """
    agreement = tables["agreement"].to_pylist()
    conditions = tables["vocabularies"]["condition"].to_pylist()
    others = list(dict.fromkeys(r["other"] for r in agreement if r["one"] == conditions[0]))
    pooled = agreement[-1]["layer"]
    with styled():
        made, axes = panels(2, len(others) + 1, width=2.7, height=2.4)
        for place, other in enumerate(others):
            for panel, measure in zip(axes[:, place], _MEASURES, strict=True):
                (found,) = [
                    r for r in agreement
                    if (r["layer"], r["one"], r["other"], r["measure"])
                    == (pooled, conditions[0], other, measure)
                ]  # fmt: skip
                _scatter(panel, tables["channels"], measure, conditions[0], other, found)
        _verdicts(axes[0, -1], tables["channels"], conditions)
        axes[1, -1].set_axis_off()
        handles, labels = axes[0, -1].get_legend_handles_labels()
        axes[1, -1].legend(handles, labels, loc="upper left")
        handles, labels = axes[0, 0].get_legend_handles_labels()
        made.legend(handles, labels, loc="outside lower center", ncols=4)
    return save(made, stem)


def _scatter(
    panel: Any, channels: pa.Table, measure: str, one: str, other: str, found: dict[str, Any]
) -> None:
    layers, condition = (
        channels[name].to_numpy(zero_copy_only=False) for name in ("layer", "condition")
    )
    values = channels[measure].to_numpy(zero_copy_only=False).astype(np.float64)
    for layer, colour in colour_of(list(dict.fromkeys(layers))).items():
        x, y = (values[(layers == layer) & (condition == name)] for name in (one, other))
        panel.plot(x, y, "o", color=colour, markersize=2.6, alpha=0.65, mew=0, label=layer)
    there = values[~np.isnan(values)]
    if len(there):
        ends = [there.min(), there.max()]
        panel.plot(ends, ends, color="#999999", linewidth=0.8, linestyle=":")
    if measure == "d_z":
        reference_line(panel, x=0.0, y=0.0)
    panel.set_xlabel(f"{_MEASURES[measure]}: {one}")
    panel.set_ylabel(f"{_MEASURES[measure]}: {other}")
    if found["spearman"] is not None:
        title(
            panel,
            f"ρ {found['spearman']:.2f} "
            f"[{found['spearman_low']:.2f}, {found['spearman_high']:.2f}]",
        )


def _verdicts(panel: Any, channels: pa.Table, conditions: list[str]) -> None:
    condition, verdict = (
        channels[name].to_numpy(zero_copy_only=False) for name in ("condition", "verdict")
    )
    left = np.zeros(len(conditions))
    total = np.array([(condition == name).sum() for name in conditions])
    for word, colour in zip(VERDICTS, _VERDICT_COLOURS, strict=True):
        share = np.array([((condition == c) & (verdict == word)).sum() for c in conditions]) / total
        panel.barh(range(len(conditions)), share, 0.7, left=left, color=colour, label=word)
        left += share
    panel.set_yticks(range(len(conditions)), conditions)
    panel.invert_yaxis()
    panel.set_xlim(0, 1)
    panel.set_xlabel("share of channels")
    title(panel, "verdicts, all layers")
