"""Names of concepts and classes: read from files, and made into words for prompts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from psi_engine.errors import InputError


def split_names(text: str) -> tuple[str, ...]:
    """Names in a text, one per line; blank lines and lines that start with # are left out.

    Runs of white space become one space.
    """
    names = (_squeeze(line) for line in text.splitlines() if not line.lstrip().startswith("#"))
    return tuple(name for name in names if name)


def read_names(path: str | Path) -> tuple[str, ...]:
    """Read the names in a UTF-8 text file, one per line, as :func:`split_names` does.

    Raises
    ------
    InputError
        When the file is missing or is not UTF-8 text.
    """
    file = Path(path)
    if not file.is_file():
        raise InputError(
            f"no file of concepts at {file}",
            expected="a text file, one concept per line",
            fix="check the path given to --concepts",
        )
    try:
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(
            f"the file of concepts {file} is not text",
            got=str(error),
            expected="UTF-8, one concept per line",
            fix="save it as UTF-8",
        ) from error
    return split_names(text)


def clean_class_names(names: Sequence[str]) -> tuple[str, ...]:
    """Turn a data set's class names into distinct words for prompts.

    The first synonym of a comma-separated list, underscores as spaces. Equal names (letter case
    aside, as text encoders lower it) are told apart by the next synonym, ``crane (bird)``, else
    by a number, ``crane (2)``; the first one bare of synonyms keeps its name.

    Raises
    ------
    InputError
        When a name is empty.
    """
    parts = [[_squeeze(part.replace("_", " ")) for part in name.split(",")] for name in names]
    for index, part in enumerate(parts):
        if not part[0]:
            raise InputError(
                "a class has no name",
                got=f"{names[index]!r} for class {index}",
                expected="a word or more",
                fix="name the class in the data set",
            )
    counts: dict[str, int] = {}
    for part in parts:
        counts[part[0].casefold()] = counts.get(part[0].casefold(), 0) + 1
    taken: set[str] = set()
    result = []
    for part in parts:
        name = part[0]
        if counts[name.casefold()] > 1 and len(part) > 1 and part[1]:
            name = f"{name} ({part[1]})"
        stem, number = name, 1
        while name.casefold() in taken:
            number += 1
            name = f"{stem} ({number})"
        taken.add(name.casefold())
        result.append(name)
    return tuple(result)


def _squeeze(text: str) -> str:
    return " ".join(text.split())
