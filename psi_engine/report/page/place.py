"""Where a report stands: what is there already, and how a new one takes its place."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from psi_engine.artifacts import full_disk_told, write_json
from psi_engine.errors import RunFolderError

RECORD = "report.json"
MAKER = "psi-engine report"
"""Under ``made_by`` in the record: only what bears it is ever replaced."""

_KEYS = {"made_by", "key", "size", "notes", "files"}
_PICTURE = re.compile(r"(sprites|hosts)/\d+\.webp")
# Thousands of them: known by their names, not listed.
_DROPPED = {".DS_Store", "Thumbs.db", "desktop.ini"}
# By file browsers, wherever somebody looked.


def read_record(out: Path) -> dict[str, Any] | None:
    """What a report says of itself; None where none of ours stands."""
    try:
        record = json.loads((out / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if not isinstance(record, dict) or not record.keys() >= _KEYS or record["made_by"] != MAKER:
        return None
    return record


def write_record(folder: Path, key: str, size: int, notes: list[str]) -> None:
    """Say whose the folder is, what it shows and which files belong to it."""
    own = [name for name in _files(folder) if not _PICTURE.fullmatch(name)]
    record = {"made_by": MAKER, "key": key, "size": size, "notes": notes}
    write_json(folder / RECORD, record | {"files": sorted([*own, RECORD])})


def refuse_foreign(out: Path) -> None:
    """Refuse to replace anything but an empty folder or a report without files of others.

    Raises
    ------
    RunFolderError
    """
    if out.exists() and not out.is_dir():
        raise RunFolderError(
            "the report's folder is a file", got=str(out), fix="give another --out"
        )
    if not out.is_dir() or not any(out.iterdir()):
        return
    record = read_record(out)
    if record is None:
        raise RunFolderError(
            "the folder holds something else than a report",
            got=str(out),
            expected=f"a new or empty folder, or a report with its {RECORD}",
            fix="give another --out; nothing was overwritten",
        )
    foreign = [name for name in _files(out) if not _belongs(name, record["files"])]
    if foreign:
        more = f" and {len(foreign) - 3} more" if len(foreign) > 3 else ""
        raise RunFolderError(
            f"files that do not belong to it are in the report's folder {out}",
            got=", ".join(foreign[:3]) + more,
            fix="move them elsewhere, or give another --out; nothing was overwritten",
        )


def refuse_fixed(out: Path) -> None:
    """Refuse folders that cannot be renamed, or that a shell would be left in when they go.

    Raises
    ------
    RunFolderError
    """
    out, here = out.resolve(), Path.cwd()
    if out == here or out in here.parents or out.is_mount():
        raise RunFolderError(
            "the report's folder is replaced as a whole, which this one cannot be",
            got=f"{out}, {'a mount point' if out.is_mount() else 'where this was started'}",
            expected="a folder that can be renamed",
            fix=f"give a folder within it, such as --out {out / 'report'}",
        )


@contextlib.contextmanager
def replacing(out: Path) -> Iterator[Path]:
    """A new folder beside ``out`` that takes its place when the block succeeds.

    Whatever fails, ``out`` is in the end what it was or the new folder, also where an earlier
    process was killed in between.

    Raises
    ------
    RunFolderError
        ``out`` cannot be renamed, or holds something else than a report.
    """
    out = out.resolve()
    refuse_fixed(out)
    made, old = (out.with_name(f".{out.name}.{word}") for word in ("part", "old"))
    with full_disk_told(out):
        _restore(old, out)
        refuse_foreign(out)
        for leftover in (made, old):  # of a killed process
            shutil.rmtree(leftover, ignore_errors=True)
        made.mkdir(parents=True)
        try:
            yield made
            refuse_foreign(out)  # it took minutes: somebody may have put something there
            if out.is_dir():
                out.replace(old)
            made.replace(out)
        finally:
            _restore(old, out)
            for leftover in (made, old):
                shutil.rmtree(leftover, ignore_errors=True)


def _restore(old: Path, out: Path) -> None:
    if old.is_dir() and not out.exists():
        old.replace(out)


def _belongs(name: str, own: list[str]) -> bool:
    return name in own or _PICTURE.fullmatch(name) is not None or Path(name).name in _DROPPED


def _files(folder: Path) -> list[str]:
    """Everything below a folder that is no folder, links included, relative to it."""
    found = []
    for home, folders, names in os.walk(folder):
        links = [name for name in folders if Path(home, name).is_symlink()]
        found += [Path(home, name).relative_to(folder).as_posix() for name in (*names, *links)]
    return sorted(found)
