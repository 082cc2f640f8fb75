"""Run a suite: every entry in its own folder, failures listed, the rest goes on."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv

from psi_engine import artifacts
from psi_engine.artifacts import Run
from psi_engine.bench.comparison import RUN_STAGES, Finished, compare, differences
from psi_engine.bench.cost import PeakMemory
from psi_engine.bench.plan import Entry, Plan
from psi_engine.errors import PsiEngineError, RunFolderError
from psi_engine.pipeline import run
from psi_engine.report.comparison import summarise
from psi_engine.report.plots import architectures
from psi_engine.types import Progress

RECORD = "suite.json"
"""What became of each run of a suite, in the suite's folder."""

FIGURE = "comparison"

Screen = Callable[[str], AbstractContextManager[Progress | None]]
"""Called with a run's title; gives the progress of that run."""


@dataclass(frozen=True)
class Outcome:
    """What became of a run.

    status : ``done`` (now), ``kept`` (it was there, with these settings) or ``failed``, then
    with ``reason``. seconds : of this run of the suite; 0 for ``kept``.
    """

    run: str
    status: str
    reason: str = ""
    seconds: float = 0.0


@dataclass(frozen=True)
class Suite:
    """A suite that has been run: tables as :func:`psi_engine.bench.comparison.compare` says."""

    folder: Path
    outcomes: tuple[Outcome, ...]
    tables: dict[str, pa.Table]
    figures: tuple[Path, ...]
    notes: tuple[str, ...]

    @property
    def failed(self) -> tuple[Outcome, ...]:
        """The runs that failed."""
        return tuple(outcome for outcome in self.outcomes if outcome.status == "failed")

    def summary(self) -> dict[str, Any]:
        """What :func:`psi_engine.report.comparison.show` draws and ``--json`` prints."""
        outcomes = [asdict(outcome) for outcome in self.outcomes]
        seeds = self.tables["comparison_seeds"]
        return summarise(str(self.folder), outcomes, seeds, self.notes)


def run_suite(plan: Plan, screen: Screen | None = None) -> Suite:
    """Run what is not finished of a suite, and compare all that is.

    Parameters
    ----------
    plan : Plan
        Of :func:`psi_engine.bench.read_plan`.
    screen : callable, optional
        ``screen(title)`` is entered around each run and gives its progress callback.

    Returns
    -------
    Suite
        Written to the suite's folder: ``comparison`` and ``comparison_seeds`` (.parquet, .csv),
        the figure ``comparison`` (.png, .svg, .pdf), and ``suite.json``.

    Raises
    ------
    RunFolderError
        The suite's folder holds something else.

    Notes
    -----
    A run that is finished under the settings it would have now is kept as it lies, unopened:
    that its data or weights have changed since is not looked for (``psi-engine run`` does). A
    run that was broken off continues where it stopped. A run that fails, for whatever reason,
    is listed with it and tried again the next time.
    """
    record = _read_record(plan.folder)
    outcomes: list[Outcome] = []
    try:
        for number, entry in enumerate(plan.entries, 1):
            known = record.setdefault(entry.key, {})
            if is_finished(entry):
                outcomes.append(Outcome(entry.key, "kept"))
                continue
            title = f"{number}/{len(plan.entries)} {entry.key}"
            with nullcontext() if screen is None else screen(title) as progress:
                outcomes.append(_attempt(entry, known, progress))
            _write_record(plan.folder, record)
    finally:  # what is finished is compared after an interruption too
        suite = _conclude(plan, outcomes, record)
    return suite


def is_finished(entry: Entry) -> bool:
    """Whether the entry's run is there, finished under the settings it would have now."""
    path = Path(str(entry.config.out))
    try:
        manifest = Run(path).manifest
    except RunFolderError:
        return False
    stages = manifest["stages"]
    return _settings(manifest["config"]) == _settings(asdict(entry.config)) and all(
        stages.get(stage, {}).get("status") == "done"
        and all((path / name).exists() for name in stages[stage]["files"])
        for stage in RUN_STAGES
    )


def _settings(config: dict[str, Any]) -> str:
    """What of a configuration can change a result, as text."""
    free = {"out": None, "workers": 0}
    mine = {**config["mine"], "batch_size": 1}
    score = {**config["score"], "memory": None}
    kept: dict[str, Any] = {**config, **free, "mine": mine, "score": score}
    return json.dumps(kept, sort_keys=True)


def _attempt(entry: Entry, known: dict[str, Any], progress: Progress | None) -> Outcome:
    started = time.perf_counter()
    continued = (Path(str(entry.config.out)) / artifacts.MANIFEST).exists()
    known.clear()
    memory = PeakMemory()
    try:
        run(entry.config, progress=progress)
    except PsiEngineError as error:
        reason = str(error)
    except Exception as error:
        # One model's failure, of whatever library, must not cost the others their runs.
        reason = f"{type(error).__name__}: {error}"
    else:
        reason = ""
    seconds = round(time.perf_counter() - started, 3)
    known.update(
        status="failed" if reason else "done",
        reason=reason,
        seconds=seconds,
        continued=continued,
        peak_rss_bytes=memory.resident_bytes(),
        peak_device_bytes=memory.device_bytes(),
    )
    return Outcome(entry.key, known["status"], reason, seconds)


def _conclude(plan: Plan, outcomes: list[Outcome], record: dict[str, Any]) -> Suite:
    """Compare what is finished and write it down."""
    finished = [_finished(entry, record) for entry in plan.entries if is_finished(entry)]
    tables = compare(finished)
    notes = tuple(differences(finished))
    figures: tuple[Path, ...] = ()
    for name, table in tables.items():
        artifacts.write_table(plan.folder / f"{name}.parquet", table)
        with artifacts.atomic(plan.folder / f"{name}.csv") as temporary:
            pa.csv.write_csv(table, temporary)
    if finished:
        figures = tuple(architectures.draw(tables, plan.folder / FIGURE))
    return Suite(plan.folder, tuple(outcomes), tables, figures, notes)


def _finished(entry: Entry, record: dict[str, Any]) -> Finished:
    known = record.get(entry.key, {})
    # Of a run that another program made, nobody knows in how many parts.
    cost = {name: known.get(name) for name in ("peak_rss_bytes", "peak_device_bytes")}
    cost["continued"] = known.get("continued", True)
    return Finished(entry, Run(Path(str(entry.config.out))), cost)


def _read_record(folder: Path) -> dict[str, Any]:
    path = folder / RECORD
    if not path.is_file():
        foreign = folder.is_dir() and any(folder.iterdir())
        if folder.exists() and (foreign or not folder.is_dir()):
            raise RunFolderError(
                f"{folder} is not a suite's folder",
                expected=f"a new or empty folder, or one with {RECORD}",
                fix="give another --out",
            )
        return {}
    try:
        record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))["runs"]
    except (json.JSONDecodeError, KeyError) as error:
        raise RunFolderError(
            f"{path} cannot be read", got=str(error), fix="delete it; finished runs are kept"
        ) from None
    return record


def _write_record(folder: Path, record: dict[str, Any]) -> None:
    artifacts.write_json(folder / RECORD, {"runs": record})
