"""Which classes are related: those that share a parent in a coarser grouping."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path

import torch
from torch import Tensor

from psi_engine.errors import InputError
from psi_engine.ops.random import hash_keys, permutations, string_key

Parents = Mapping[int, tuple[str, ...]]
"""Parents of each label; a label without any is related to none."""

_EXPECTED = (
    'JSON {"class name or label": "parent" or ["parent", …]} or CSV lines class,parent[,parent…]'
)
_ATTEMPTS = 200
# Draws of a group before it is taken not to exist: a greedy pick can paint itself into a corner.


def read_parents(path: Path) -> dict[str, tuple[str, ...]]:
    """Read a mapping of class names or labels to parents.

    Parameters
    ----------
    path : Path
        ``.json``: an object whose values are a parent or a list of parents. Any other ending:
        comma-separated lines ``class,parent[,parent…]``. Classes are related where they share
        any parent; the first one is the coarse label.

    Raises
    ------
    InputError
        The file is missing, or not of this form.
    """
    if not path.is_file():
        raise InputError("the coarse mapping is not there", got=str(path), expected=_EXPECTED)
    try:
        text = path.read_text(encoding="utf-8-sig")
        if path.suffix.lower() == ".json":
            found = json.loads(text)
            if not isinstance(found, dict):
                raise ValueError(f"a {type(found).__name__}")
            pairs = [(str(name), value) for name, value in found.items()]
        else:
            rows = [[cell.strip() for cell in row] for row in csv.reader(text.splitlines()) if row]
            pairs = [(row[0], row[1:]) for row in rows]
        parents = {name: _checked(name, value) for name, value in pairs}
        if not parents:
            raise ValueError("nothing")
    except (UnicodeDecodeError, ValueError, csv.Error) as error:
        raise InputError(
            "the coarse mapping cannot be read", got=f"{path}: {error}", expected=_EXPECTED
        ) from error
    return parents


def _checked(name: str, value: object) -> tuple[str, ...]:
    several = [value] if isinstance(value, str) else value
    if not isinstance(several, list) or not several:
        raise ValueError(f"{name!r} without a parent")
    if not all(isinstance(parent, str) and parent for parent in several):
        raise ValueError(f"{name!r} with a parent that is not a name")
    return tuple(several)


def parents_of(
    mapping: Mapping[str, Sequence[str]], class_names: Sequence[str] | None, labels: Sequence[int]
) -> dict[int, tuple[str, ...]]:
    """Parents by label, found by class name or, where no name fits, by the label's number.

    Raises
    ------
    InputError
        No class of the data is named, or no two of them share a parent.
    """
    found: dict[int, tuple[str, ...]] = {}
    names = [str(label) for label in labels]
    if class_names is not None:
        names = [class_names[label] if label < len(class_names) else str(label) for label in labels]
    for label, name in zip(labels, names, strict=True):
        for key in (name, str(label)):
            if key in mapping:
                found[label] = tuple(mapping[key])
                break
    if not found:
        first = next(iter(mapping))
        close = get_close_matches(first, names, n=1, cutoff=0.0)
        raise InputError(
            "the coarse mapping names no class of the data",
            got=f"{first!r} and {len(mapping) - 1} more",
            expected=f"class names such as {close[0]!r}, or labels such as '{labels[0]}'",
        )
    if len({parent for own in found.values() for parent in own}) == sum(map(len, found.values())):
        raise InputError(
            "no two classes of the data share a parent in the coarse mapping",
            got=f"{len(found)} classes, each with parents of its own",
            fix="map classes to coarser groups",
        )
    return found


def coarse_labels(labels: Tensor, parents: Parents) -> Tensor:
    """Labels of the first parents: int64, the shape of ``labels``; −1 stays −1.

    A class without a parent stays a class of its own.
    """
    highest = int(labels.max()) if labels.numel() else -1
    names = sorted({own[0] for own in parents.values()})
    number = {name: place for place, name in enumerate(names)}
    table = torch.arange(highest + 2) + len(names)
    for label, own in parents.items():
        if label <= highest:
            table[label] = number[own[0]]
    return torch.where(labels < 0, -1, table[labels.clamp(min=0)])


def draw_classes(
    classes: Sequence[int], size: int, related: bool, parents: Parents, key: int
) -> tuple[int, ...] | None:
    """Classes that all share a parent, or that pairwise share none.

    Parameters
    ----------
    classes : sequence of int
        Labels to choose from.
    key : int
        Of the draw.

    Returns
    -------
    tuple of int, or None
        ``size`` labels, ascending; None where no such classes were found.
    """
    if related:
        groups: dict[str, list[int]] = {}
        for label in classes:
            for parent in parents.get(label, ()):
                groups.setdefault(parent, []).append(label)
        wide = sorted(name for name, members in groups.items() if len(members) >= size)
        if not wide:
            return None
        members = groups[wide[_order(key, len(wide))[0]]]
        return tuple(sorted(members[i] for i in _order(key, len(members), 1)[:size]))
    for attempt in range(_ATTEMPTS):
        chosen: list[int] = []
        taken: set[str] = set()
        for place in _order(key, len(classes), 2, attempt):
            label = classes[place]
            if taken.isdisjoint(parents.get(label, ())):
                chosen.append(label)
                taken.update(parents.get(label, ()))
            if len(chosen) == size:
                return tuple(sorted(chosen))
    return None


def _order(key: int, n: int, *salt: int) -> list[int]:
    order: list[int] = permutations(
        hash_keys(key, string_key("validation/classes"), *salt), n
    ).tolist()
    return order
