"""A suite of runs as plain data and on screen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
from rich import box
from rich.console import Console
from rich.table import Table

_SHOWN = (
    "name", "preset", "layer", "depth", "channels", "seeds", "polysemantic_share_mean",
    "log_psi_median_mean", "log_psi_median_sd", "s_z_median_mean", "q_z_median_mean",
    "d_z_median_mean", "clusters_mean_mean", "clarity_median_mean", "rank_agreement",
    "images_per_second_mean",
)  # fmt: skip


def summarise(
    folder: str, outcomes: Sequence[Mapping[str, Any]], seeds: pa.Table, notes: Sequence[str]
) -> dict[str, Any]:
    """Gather what is shown of a suite, JSON-able.

    Parameters
    ----------
    outcomes : sequence of mapping
        ``run, status, reason, seconds`` of each run.
    seeds : Table
        ``comparison_seeds`` of :func:`psi_engine.bench.comparison.compare`.

    Returns
    -------
    dict
        With the keys ``suite, runs, layers, failed, notes``.
    """
    return {
        "suite": folder,
        "runs": [dict(outcome) for outcome in outcomes],
        "layers": seeds.select(_SHOWN).to_pylist(),
        "failed": sum(outcome["status"] == "failed" for outcome in outcomes),
        "notes": list(notes),
    }


def show(console: Console, summary: Mapping[str, Any]) -> None:
    """Draw the comparison, seeds put together, and list what failed and why."""
    presets = {row["preset"] for row in summary["layers"]}
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
    table.add_column("model", overflow="fold")
    table.add_column("layer", overflow="fold")
    headings = ("depth", "chan.", "seeds", "poly", "log PSI", "z S", "z Q", "z D", "k̂", "ρ seeds")
    for name in headings:
        table.add_column(name, justify="right", no_wrap=True)
    last = None
    for row in summary["layers"]:
        name = row["name"] if len(presets) == 1 else f"{row['name']} {row['preset']}"
        if last not in (None, name):
            table.add_section()
        table.add_row(
            "" if name == last else name,
            row["layer"],
            _number(row["depth"]),
            str(row["channels"]),
            str(row["seeds"]),
            _number(row["polysemantic_share_mean"]),
            _spread(row["log_psi_median_mean"], row["log_psi_median_sd"]),
            *(_number(row[f"{x}_z_median_mean"]) for x in "sqd"),
            _number(row["clusters_mean_mean"]),
            _number(row["rank_agreement"]),
        )
        last = name
    console.print(table)
    console.print(
        "poly: share of scorable channels; log PSI, z: medians of channels, mean over seeds "
        "(± sd); ρ seeds: Spearman of log PSI between two seeds",
        highlight=False,
    )
    for note in summary["notes"]:
        console.print(f"note: {note}", style="yellow", highlight=False)
    counts = [f"{sum(r['status'] == s for r in summary['runs'])} {s}" for s in _STATES]
    console.print("runs: " + ", ".join(counts), highlight=False)
    for outcome in summary["runs"]:
        if outcome["status"] == "failed":
            console.print(
                f"failed: {outcome['run']}: {outcome['reason']}", style="red", highlight=False
            )


_STATES = ("done", "kept", "failed")


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def _spread(mean: float | None, sd: float | None) -> str:
    return _number(mean) if sd is None else f"{_number(mean)} ± {sd:.2f}"
