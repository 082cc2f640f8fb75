"""Where the members of a tar lie: found by one walk, kept for the next process."""

from __future__ import annotations

import hashlib
import json
import os
import re
import tarfile
import tempfile
from itertools import product
from pathlib import Path
from typing import IO, NamedTuple

import pyarrow as pa
import pyarrow.feather as feather

from psi_engine.data.download import cache_folder
from psi_engine.data.folders import files_ending
from psi_engine.data.source import probe
from psi_engine.errors import DataError

COMPRESSED = (".tar.gz", ".tgz", ".tar.zst", ".tar.xz", ".tar.bz2")
LABELS = ("label", "cls", "class")
"""Keys of a sample's JSON that may hold its label, the first one found."""

_FORMAT = "2"  # of the kept lists
_TAIL = 1 << 20
_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")


class Member(NamedTuple):
    """A file in a tar.

    name : path in the tar
    start, size : bytes of its content
    label : content of a ``.cls``, or the label in a ``.json``; None for others
    ends : digest of its size and its first and last 4 KB
    """

    name: str
    start: int
    size: int
    label: str | None
    ends: bytes


def shard_files(spec: str | Path) -> list[Path]:
    """Tar files a user names, in order.

    Parameters
    ----------
    spec : str or Path
        A file, a folder that is searched for them, or a pattern: ``{000..009}`` counts, with
        leading zeros where the first number has them, ``{a,b}`` lists.

    Raises
    ------
    DataError
        One is missing or compressed.
    """
    path = Path(spec).expanduser()
    if path.is_dir():
        files = files_ending(path, (".tar", *COMPRESSED))
    elif path.exists():
        files = [path]
    else:
        files = [Path(name) for name in expand_braces(str(path))]
    missing = [str(file) for file in files if not file.is_file()]
    if missing:
        raise DataError(
            f"{len(missing)} of the {len(files)} shards of {spec} are missing",
            got="no " + ", ".join(missing[:3]) + (", …" if len(missing) > 3 else ""),
            fix="fetch them, or name those that are there",
        )
    for file in files:
        if file.name.endswith(COMPRESSED):
            raise DataError(
                f"{file} is compressed",
                expected="plain .tar shards, in which an image can be read without the others",
                fix="unpack it, such as with gunzip; images in it are compressed already",
            )
    return files


def expand_braces(pattern: str) -> list[str]:
    """Names that a pattern with braces stands for, the first braces changing slowest."""
    parts = _BRACES.split(pattern)
    choices = [[part] if i % 2 == 0 else _choices(part) for i, part in enumerate(parts)]
    return ["".join(chosen) for chosen in product(*choices)]


def _choices(inside: str) -> list[str]:
    counted = _RANGE.fullmatch(inside)
    if counted is None:
        return inside.split(",")
    width = len(counted[1]) if counted[1].startswith("0") else 0
    return [f"{n:0{width}d}" for n in range(int(counted[1]), int(counted[2]) + 1)]


def read_index(file: Path) -> list[Member]:
    """List the regular files in a tar, in its order.

    The list is kept in the cache folder, under the tar's path, with its size and time of change:
    a tar that changed is walked again.

    Raises
    ------
    DataError
        The file is not a whole, plain tar.
    """
    state = file.stat()
    stamp = f"{_FORMAT} {state.st_size} {state.st_mtime_ns}"
    name = hashlib.sha256(os.fsencode(file.resolve())).hexdigest()[:32]
    kept = cache_folder() / "tar-index" / f"{name}.arrow"
    try:
        table = feather.read_table(kept, memory_map=False)
        if (table.schema.metadata or {}).get(b"tar") == stamp.encode():
            return [Member(*row) for row in zip(*table.to_pydict().values(), strict=True)]
    except (OSError, pa.ArrowInvalid, TypeError):
        pass  # none yet, or one that a full disk cut short
    members = _walk(file)
    _keep(members, kept, stamp)
    return members


def _keep(members: list[Member], kept: Path, stamp: str) -> None:
    kinds = (pa.string(), pa.int64(), pa.int64(), pa.string(), pa.binary())
    columns = list(zip(*members, strict=True)) or [()] * len(kinds)
    arrays = [pa.array(column, kind) for column, kind in zip(columns, kinds, strict=True)]
    table = pa.table(arrays, names=list(Member._fields), metadata={"tar": stamp})
    try:
        kept.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=kept.parent, delete=False) as scratch:
            feather.write_feather(table, scratch)
        os.replace(scratch.name, kept)
    except OSError:
        pass  # nowhere to keep it: the tar is walked again next time


def _walk(file: Path) -> list[Member]:
    members = []
    try:
        with file.open("rb") as stream, tarfile.open(fileobj=stream, mode="r:") as tar:
            for entry in tar:
                if not entry.isreg() or entry.issparse():
                    continue
                place = (entry.name.removeprefix("./"), entry.offset_data, entry.size)
                members.append(Member(*place, _label_in(stream, *place), probe(stream, *place[1:])))
            stream.seek(tar.offset)
            tail = stream.read(_TAIL)
    except (tarfile.TarError, OSError, EOFError) as error:
        raise DataError(
            f"{file} cannot be read as a tar", got=str(error), fix="fetch or write it again"
        ) from error
    # tarfile takes a bad header for the end. A whole tar ends in blocks of zeros, nothing after.
    if not tail or any(tail):
        raise DataError(
            f"the tar {file} is {'broken' if tail else 'cut short'}",
            got=f"{len(members)} files, then " + ("no file header" if tail else "no end mark"),
            fix="fetch or write it again",
        )
    return members


def _label_in(stream: IO[bytes], name: str, start: int, size: int) -> str | None:
    kind = name.rpartition("/")[2].partition(".")[2].lower()
    if kind not in ("cls", "json"):
        return None
    stream.seek(start)
    data = stream.read(size)
    try:
        if kind == "cls":
            return data.decode("utf-8").strip() or None
        content = json.loads(data)
    except ValueError:
        return None
    if not isinstance(content, dict):
        return None
    found = next((content[key] for key in LABELS if key in content), None)
    return str(found) if isinstance(found, int | str) and not isinstance(found, bool) else None
