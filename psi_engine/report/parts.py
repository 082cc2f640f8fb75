"""What the parts of a validation left in a run folder: their records, read.

``RUN/validation/PART.json`` holds ``part``, ``key`` (what the part's result depends on),
``score_key`` (of the scores it was made from), ``options``, ``tables`` (short name → path in the
run folder, without its ending), ``figures`` (paths in the run folder), ``notes``, ``headline``,
``seconds`` and ``versions``.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from psi_engine.artifacts import Run

FOLDER = "validation"
"""Of the tables and records, in the run folder."""


def record_path(run: Path, part: str) -> Path:
    """Where a part's record is."""
    return run / FOLDER / f"{part}.json"


def read_record(run: Path, part: str) -> dict[str, Any] | None:
    """Return a part's record; None where the part was not finished or a table is missing."""
    path = record_path(run, part)
    if not path.is_file():
        return None
    try:
        record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError:
        return None
    there = all((run / f"{stem}.parquet").is_file() for stem in record["tables"].values())
    return record if there else None


def read_tables(run: Path, record: dict[str, Any]) -> dict[str, pa.Table]:
    """Read the tables of a record, by their short names."""
    return {name: pq.read_table(run / f"{stem}.parquet") for name, stem in record["tables"].items()}


def score_key(run: Run) -> str:
    """Key of the run's scores: a part made from other scores is out of date."""
    key: str = run.manifest["stages"]["score"]["key"]
    return key


def finished_parts(run: Run) -> list[dict[str, Any]]:
    """Records of every finished part, by name, each with ``current``: made from these scores."""
    names = sorted(path.stem for path in (run.path / FOLDER).glob("*.json"))
    records = [read_record(run.path, name) for name in names]
    key = score_key(run)
    return [r | {"current": r["score_key"] == key} for r in records if r is not None]
