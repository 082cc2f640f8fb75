"""Run the parts of a validation on a finished run, each once for the same scores and options."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv

from psi_engine import artifacts
from psi_engine.artifacts import Run, fingerprint
from psi_engine.distributed import LOCK, only_job
from psi_engine.errors import InputError, PsiEngineError
from psi_engine.provenance import versions
from psi_engine.report.parts import FOLDER, read_record, read_tables, record_path, score_key
from psi_engine.report.plots.style import FORMS
from psi_engine.stored import StoredRun, load_stored
from psi_engine.types import Progress
from psi_engine.validation import parts as registry
from psi_engine.validation.part import Context, Options, Part, Result

FIGURES = "figures"
"""Folder of the figures, in the run folder."""

FILES = {"coarse", "second_encoder_weights"}
"""Options that may name a file."""


@dataclass(frozen=True)
class Outcome:
    """What became of a part.

    status : ``done`` (computed now), ``kept`` (the earlier result still holds), ``skipped`` (not
    to be had on this run) or ``failed``; ``reason`` says why for the last two. Paths are in the
    run folder.
    """

    part: str
    status: str
    reason: str = ""
    seconds: float = 0.0
    tables: tuple[str, ...] = ()
    figures: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    headline: tuple[str, ...] = ()


def validate_run(
    run: str | Path,
    names: Sequence[str] = (),
    options: Options | None = None,
    *,
    progress: Progress | None = None,
) -> list[Outcome]:
    """Run parts of the validation of a run and write their tables and figures.

    Parameters
    ----------
    run : path
        A finished run folder.
    names : sequence of str
        Parts by name; empty = all. They run in the order of :data:`parts.NAMES`.
    options : Options, optional
    progress : callable, optional

    Returns
    -------
    list of Outcome
        One per part. A part that fails, for whatever reason, does not stop the others.

    Raises
    ------
    RunFolderError
        No finished run, or another job is writing there.
    InputError
        An unknown part, or a part asked for by name that cannot be had on this run; before work.
    """
    wanted = [registry.load(name) for name in names or registry.NAMES]
    wanted.sort(key=lambda part: registry.NAMES.index(part.name))
    with only_job(artifacts.open_run(run).path / LOCK):
        return _run_all(load_stored(run), wanted, bool(names), options or Options(), progress)


def _run_all(
    stored: StoredRun,
    wanted: Sequence[Part],
    named: bool,
    options: Options,
    progress: Progress | None,
) -> list[Outcome]:
    path = stored.run.path
    plan = []
    for part in dict.fromkeys(wanted):
        context = Context(
            stored, options, path / FOLDER / part.name, _prefixed(progress, part.name)
        )
        reason = part.needs(context)
        if reason is not None and named:
            raise InputError(f"the part {part.name} cannot be had on this run", got=reason)
        plan.append((part, context, reason))
    return [_run_one(part, context, reason) for part, context, reason in plan]


def part_key(part: Part, run: Run, options: Options) -> str:
    """Hash what a part's tables depend on; of a file that an option names, what is in it."""
    chosen = {name: getattr(options, name) for name in part.options}
    for name in FILES & chosen.keys():
        if chosen[name] is not None and Path(chosen[name]).is_file():
            with Path(chosen[name]).open("rb") as stream:
                chosen[name] = hashlib.file_digest(stream, "sha256").hexdigest()
    return fingerprint(part.name, part.version, score_key(run), chosen)


def _run_one(part: Part, context: Context, reason: str | None) -> Outcome:
    if reason is not None:
        return Outcome(part.name, "skipped", reason)
    run = context.stored.run
    started = time.perf_counter()
    try:
        key = part_key(part, run, context.options)
        if other := part.depends(context):
            key = fingerprint(key, other)
        record = read_record(run.path, part.name)
        kept = record is not None and record["key"] == key
        if record is None or not kept:
            record = _compute(part, context, key)
        if not _all_drawn(run.path, record):
            stem = run.path / FIGURES / part.name
            stem.parent.mkdir(exist_ok=True)
            drawn = part.draw(read_tables(run.path, record), stem)
            record["figures"] = [str(file.relative_to(run.path)) for file in drawn]
            record["forms"] = list(FORMS)
    except PsiEngineError as error:
        return Outcome(part.name, "failed", str(error), time.perf_counter() - started)
    except Exception as error:
        # A fault in one part, of whatever library, must not cost the others their results.
        reason = f"{type(error).__name__}: {error}"
        return Outcome(part.name, "failed", reason, time.perf_counter() - started)
    if not kept:
        record["seconds"] = round(time.perf_counter() - started, 3)
    artifacts.write_json(record_path(run.path, part.name), record)
    return Outcome(
        part.name,
        "kept" if kept else "done",
        seconds=record["seconds"],
        tables=tuple(f"{stem}.parquet" for stem in record["tables"].values()),
        figures=tuple(record["figures"]),
        notes=tuple(record["notes"]),
        headline=tuple(record["headline"]),
    )


def _compute(part: Part, context: Context, key: str) -> dict[str, Any]:
    """Make and write the tables; the record that tells of them is the caller's last step."""
    run = context.stored.run
    _forget(run.path, part.name)
    result: Result = part.compute(context)
    stems = {name: f"{FOLDER}/{part.name}-{name}" for name in result.tables}
    for name, table in result.tables.items():
        artifacts.write_table(run.path / f"{stems[name]}.parquet", table)
        with artifacts.atomic(run.path / f"{stems[name]}.csv") as temporary:
            pyarrow.csv.write_csv(flat(table), temporary)
    return {
        "part": part.name,
        "key": key,
        "score_key": score_key(run),
        "options": {name: getattr(context.options, name) for name in part.options},
        "tables": stems,
        "figures": [],
        "notes": list(result.notes),
        "headline": list(result.headline),
        "versions": versions(),
    }


def _forget(run: Path, part: str) -> None:
    """Remove what an earlier computation left, its record first."""
    old = read_record(run, part)
    record_path(run, part).unlink(missing_ok=True)
    if old is not None:
        stale = [f"{stem}.{end}" for stem in old["tables"].values() for end in ("parquet", "csv")]
        for name in (*stale, *old["figures"]):
            (run / name).unlink(missing_ok=True)


def _all_drawn(run: Path, record: Mapping[str, Any]) -> bool:
    """Whether the figures are there, in every form; earlier versions drew fewer."""
    figures = record["figures"]
    there = bool(figures) and all((run / name).is_file() for name in figures)
    return there and record.get("forms") == list(FORMS)


def flat(table: pa.Table) -> pa.Table:
    """A table that CSV can hold: nested columns as JSON, binary ones left out."""
    columns = {}
    for column in table.schema:
        if pa.types.is_binary(column.type) or pa.types.is_large_binary(column.type):
            continue
        values = table[column.name]
        if pa.types.is_nested(column.type):
            values = pa.array([json.dumps(value) for value in values.to_pylist()], pa.string())
        columns[column.name] = values
    return pa.table(columns)


def _prefixed(progress: Progress | None, name: str) -> Progress | None:
    if progress is None:
        return None
    return lambda what, done, total: progress(f"{name}: {what}", done, total)
