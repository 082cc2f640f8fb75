"""What patch swaps do, and whether the aligned patch is special (Fig. 2d of the paper)."""

from __future__ import annotations

from typing import Any

from psi_engine.artifacts import open_run
from psi_engine.causal import SwapConfig, plan_swaps, read_swaps, swap, swap_key
from psi_engine.errors import InputError
from psi_engine.report.plots.causal import draw
from psi_engine.validation.part import Context, Part, Result


def compute(context: Context) -> Result:
    """Take the run's swaps; make them with the defaults where there are none.

    Returns
    -------
    Result
        ``summary``: the tests of ``causal_summary.parquet``.
    """
    path = context.stored.run.path
    if _made_with(context) is None:
        swap(path, _default(context), progress=context.progress)
    run = open_run(path)
    stage = run.manifest["stages"]["swap"]
    _, tests = read_swaps(run)
    notes = [
        *(
            f"{row['layer']}:{row['channel']} was left out: {row['reason']}"
            for row in stage["skipped"]
        ),
        *stage["notes"],
    ]
    if stage["nonfinite"]:
        notes.append(
            f"{stage['nonfinite']} swaps gave no finite activation; their hosts are left out"
        )
    return Result({"summary": tests}, tuple(notes), _headline(tests.to_pylist()))


def _headline(rows: list[dict[str, Any]]) -> tuple[str, ...]:
    """One line per kind of host: aligned, and how far above each control, hard paste if any."""
    lines = []
    pooled = [row for row in rows if row["level"] == "all"]
    blend = "hard" if any(row["blend"] == "hard" for row in pooled) else "feathered"
    for hosts in dict.fromkeys(row["hosts"] for row in pooled):
        ours = [row for row in pooled if (row["hosts"], row["blend"]) == (hosts, blend)]
        against = "; ".join(
            f"{row['control']} {row['mean_difference']:+.3f} (p {row['t_p_holm']:.2g})"
            for row in ours
            if row["mean_difference"] is not None and row["t_p_holm"] is not None
        )
        mean, n = ours[0]["mean_aligned"], ours[0]["n"]
        if mean is not None:
            lines.append(
                f"{hosts} hosts, {n} channels: aligned {mean:+.3f} of the range; above {against}"
            )
    return tuple(lines)


def _default(context: Context) -> SwapConfig:
    return SwapConfig(bootstrap=context.options.bootstrap, seed=context.options.seed)


def _made_with(context: Context) -> str | None:
    """Key of the swaps that are there; None where there are none of these scores."""
    stage = open_run(context.stored.run.path).manifest["stages"].get("swap", {})
    return stage["key"] if stage.get("status") == "done" else None


def _depends(context: Context) -> str:
    return _made_with(context) or swap_key(context.stored, _default(context))


def _needs(context: Context) -> str | None:
    if _made_with(context) is not None:
        return None
    try:
        plan_swaps(context.stored, _default(context))
    except InputError as error:
        return str(error)
    return None


PART = Part("causal", compute, draw, needs=_needs, depends=_depends)
