"""Labels and names of classes, from what data sets keep with their images."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

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
    """Read ``classes.json``, ``words.txt`` or ``classnames.txt`` in a folder, the first there is.

    Parameters
    ----------
    folder : Path
        ``classes.json`` holds a list of names, or of objects with ``label``, ``name`` and
        optionally ``wnid``. ``words.txt`` holds lines ``wnid<TAB>name, synonym, …``; the first
        synonym is the name. ``classnames.txt`` holds a name a line, in the order of the labels.

    Returns
    -------
    Classes or None
        None if there is none of them.

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
    plain = folder / "classnames.txt"
    if plain.is_file():
        names = [line.strip() for line in plain.read_text(encoding="utf-8").splitlines()]
        return Classes(tuple(name for name in names if name), {})
    return None


def name_labels(
    given: Sequence[str | None], classes: Classes | None, source: str
) -> tuple[Tensor | None, tuple[str, ...] | None]:
    """Turn labels that came as text into numbers, and find their names.

    Parameters
    ----------
    given : sequence of str or None
        One an image: whole numbers, or words, which are numbered in sorted order.
    classes : Classes or None
        What :func:`read_classes` found beside the images.
    source : str
        Whose labels they are, for messages.

    Returns
    -------
    labels : Tensor or None
        int64 (images,), −1 for None and for numbers below 0; None if all are None.
    names : tuple of str or None

    Raises
    ------
    DataError
        If some are numbers and some words, or a number has no name in ``classes``.
    """
    known = {text for text in given if text is not None}
    if not known:
        return None, None
    numbers = {text for text in known if re.fullmatch(r"-?\d{1,18}", text)}
    if numbers and numbers != known:
        raise DataError(
            f"labels of {source} are of two kinds",
            got=f"{min(numbers)!r} and {min(known - numbers)!r}",
            expected="whole numbers or words, for all images",
        )
    if numbers:
        labels = torch.tensor([max(-1, int(text)) if text else -1 for text in given])
        names = None if classes is None else classes.by_label
        check_named(labels, names, source)
        return labels, names
    words = sorted(known)
    number = {word: i for i, word in enumerate(words)}
    labels = torch.tensor([-1 if text is None else number[text] for text in given])
    return labels, tuple(words) if classes is None else classes.rename(words)


def check_named(labels: Tensor, names: Sequence[str] | None, source: str) -> None:
    """Raise a DataError when a label of a source has no name among those it has."""
    if names is not None and len(labels) and int(labels.max()) >= len(names):
        raise DataError(
            f"labels in {source} have no name",
            got=f"label {int(labels.max())} with {len(names)} class names",
            expected=f"labels below {len(names)}",
        )


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
