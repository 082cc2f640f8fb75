"""What patch swaps do, and whether the aligned patch is special (Fig. 2d of the paper)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from psi_engine.artifacts import fingerprint, open_run
from psi_engine.causal import SwapConfig, plan_swaps, read_swaps, swap, swap_key
from psi_engine.errors import InputError
from psi_engine.report.plots.causal import draw
from psi_engine.validation.part import Context, Part, Result


def compute(context: Context) -> Result:
    """Take the run's swaps; make them with the defaults where there are none.

    Returns
    -------
    Result
        ``summary``: the tests of ``causal_summary.parquet``. What the swaps were made with, and
        what of the options they were not, is in the notes.
    """
    path = context.stored.run.path
    if _stage(context).get("status") != "done":
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
        _settings(stage),
        *_not_as_asked(context, stage),
    ]
    if stage["nonfinite"]:
        notes.append(
            f"{stage['nonfinite']} swaps gave no finite activation; their hosts are left out"
        )
    return Result({"summary": tests}, tuple(notes), _headline(tests.to_pylist()))


def _settings(stage: Mapping[str, Any]) -> str:
    config = stage["config"]
    device = f" on {stage['device']}" if "device" in stage else ""
    return (
        f"swapped with hosts {config['hosts']}, blend {config['blend']}, {config['per_channel']} "
        f"hosts of each kind per channel, seed {config['seed']}, bootstrap "
        f"{config['bootstrap']}{device}"
    )


def _not_as_asked(context: Context, stage: Mapping[str, Any]) -> list[str]:
    """What of the part's options the swaps that are there were not made with."""
    options, config, notes = context.options, stage["config"], []
    asked = {"seed": options.seed, "bootstrap": options.bootstrap}
    if unlike := {name: x for name, x in asked.items() if config[name] != x}:
        values = ", ".join(f"{name} {x}" for name, x in unlike.items())
        given = " ".join(f"--{name} {x}" for name, x in unlike.items())
        command = f"psi-engine swap {context.stored.run.path} {given}"
        notes.append(f"the swaps were there already, not with {values}: {command} makes those")
    device = (options.device or "auto").partition(":")[0]
    if device not in ("auto", stage.get("device", device)):
        notes.append(f"not on {device}: swaps run where the run did, on {stage['device']}")
    return notes


def _headline(rows: list[dict[str, Any]]) -> tuple[str, ...]:
    """One line per kind of host: aligned, and aligned minus each control, hard paste if any."""
    lines = []
    pooled = [row for row in rows if row["level"] == "all"]
    blend = "hard" if any(row["blend"] == "hard" for row in pooled) else "feathered"
    for hosts in dict.fromkeys(row["hosts"] for row in pooled):
        ours = [row for row in pooled if (row["hosts"], row["blend"]) == (hosts, blend)]
        against = ", ".join(
            f"{row['control']} {row['mean_difference']:+.3f} (p {row['t_p_holm']:.2g})"
            for row in ours
            if row["mean_difference"] is not None and row["t_p_holm"] is not None
        )
        mean, n = ours[0]["mean_aligned"], ours[0]["n"]
        if mean is not None:
            line = f"{hosts} hosts, {n} channels: aligned {mean:+.3f} of the range"
            lines.append(f"{line}; aligned minus: {against}" if against else line)
    return tuple(lines)


def _default(context: Context) -> SwapConfig:
    return SwapConfig(bootstrap=context.options.bootstrap, seed=context.options.seed)


def _stage(context: Context) -> dict[str, Any]:
    """The manifest's entry of the swaps, as it is now; empty where there are none."""
    entry: dict[str, Any] = open_run(context.stored.run.path).manifest["stages"].get("swap", {})
    return entry


def _depends(context: Context) -> str:
    stage = _stage(context)
    if stage.get("status") != "done":
        return swap_key(context.stored, _default(context))
    made: str = stage["key"]
    unlike = _not_as_asked(context, stage)
    return fingerprint(made, unlike) if unlike else made


def _needs(context: Context) -> str | None:
    stage = _stage(context)
    if stage.get("status") == "done":
        return None
    if stage and stage["key"] != swap_key(context.stored, _default(context)):
        # Swaps of other settings would take the place of theirs.
        return (
            "swaps of other settings were broken off; finish them: the psi-engine swap command "
            "that began them goes on where it stopped"
        )
    try:
        plan_swaps(context.stored, _default(context))
    except InputError as error:
        return str(error)
    return None


PART = Part("causal", compute, draw, needs=_needs, depends=_depends)
