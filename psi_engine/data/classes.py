"""Names of classes, from the files that data sets keep beside their images."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from psi_engine.errors import DataError


@dataclass(frozen=True)
class Classes:
    """Class names: ``by_label`` in the order of the labels, ``by_folder`` by WordNet id."""

    by_label: tuple[str, ...] | None
    by_folder: dict[str, str]

    def rename(self, folders: Sequence[str]) -> tuple[str, ...]:
        """Readable names of class folders; a folder without one keeps its own name."""
        return tuple(self.by_folder.get(folder, folder) for folder in folders)


def read_classes(folder: Path) -> Classes | None:
    """Read ``classes.json``, else ``words.txt``, in a folder; None if there is neither.

    Parameters
    ----------
    folder : Path
        ``classes.json`` holds a list of names, or of objects with ``label``, ``name`` and
        optionally ``wnid``. ``words.txt`` holds lines ``wnid<TAB>name, synonym, …``; the first
        synonym is the name.

    Raises
    ------
    DataError
        If ``classes.json`` is not of this form.
    """
    file = folder / "classes.json"
    if file.is_file():
        return _from_json(file)
    words = folder / "words.txt"
    if words.is_file():
        lines = words.read_text(encoding="utf-8").splitlines()
        pairs = (line.split("\t", 1) for line in lines if "\t" in line)
        return Classes(None, {wnid: names.split(",")[0].strip() for wnid, names in pairs})
    return None


def _from_json(file: Path) -> Classes:
    expected = 'a list of names, or of {"label": 0, "name": "goldfish", "wnid": "n01443537"}'
    try:
        rows = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(rows, list) or not rows:
            raise ValueError(f"a {type(rows).__name__} of no classes")
        if all(isinstance(row, str) for row in rows):
            return Classes(tuple(rows), {})
        rows = sorted(rows, key=lambda row: int(row["label"]))
        if [row["label"] for row in rows] != list(range(len(rows))):
            raise ValueError("labels that are not 0, 1, 2, …")
        names = tuple(str(row["name"]) for row in rows)
        folders = {
            str(row["wnid"]): name for row, name in zip(rows, names, strict=True) if "wnid" in row
        }
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{file} does not list classes", got=str(error), expected=expected
        ) from error
    return Classes(names, folders)
