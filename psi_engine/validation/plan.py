"""Which units are planted: their kind, their half of the classes, and their classes.

=====================  =============================================================
``mono``               one class
``polyN-unrelated``    N = 2, 3 or 5 classes, no two with a common parent
``polyN-related``      N classes with a common parent; only with a coarse mapping
noise kinds            no class at all; their names come from who makes them
=====================  =============================================================

The classes are split into two halves by keyed hash: what is chosen on ``tuning`` is judged on
``held-out``. The pool, and the images of planted noise, are of both.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from psi_engine.ops.random import hash_keys, string_key
from psi_engine.validation.relations import Parents, draw_classes

HALVES = ("tuning", "held-out")
SIZES = (2, 3, 5)
"""Numbers of classes of the polysemantic units."""
RELATIONS = ("unrelated", "related")

_TRIES = 20
# Draws of a group that was not drawn before, until there are taken to be no more.


class Plan(NamedTuple):
    """One unit: its kind, the half its classes come from, their labels (none for noise)."""

    kind: str
    half: str
    classes: tuple[int, ...]


def split_classes(labels: Sequence[int], seed: int) -> dict[str, list[int]]:
    """Split labels into :data:`HALVES` by keyed hash, equal in number up to one.

    The order within a half is the hash's.
    """
    keys = hash_keys(seed, string_key("validation/half"), torch.tensor(sorted(labels)))
    order = torch.argsort(keys, stable=True).tolist()
    shuffled = [sorted(labels)[place] for place in order]
    middle = (len(shuffled) + 1) // 2
    return {"tuning": shuffled[:middle], "held-out": shuffled[middle:]}


def plan_units(
    halves: dict[str, list[int]],
    parents: Parents,
    per_kind: int,
    noise: Sequence[str],
    seed: int,
    *,
    repeat: bool,
) -> tuple[list[Plan], list[str]]:
    """Plan about ``per_kind`` units of each kind, half of them in each half of the classes.

    Parameters
    ----------
    halves : dict
        Labels of each half, of :func:`split_classes`.
    noise : sequence of str
        Names of the noise kinds.
    repeat : bool
        Whether several units may have the same classes.

    Returns
    -------
    plans : list of Plan
    notes : list of str
        Kinds that have fewer units than asked for, or none.
    """
    plans: list[Plan] = []
    short: dict[str, int] = {}
    for half in HALVES:
        classes = halves[half]
        wanted = (per_kind + (half == "tuning")) // 2
        mono = wanted if repeat else min(wanted, len(classes))
        short["mono"] = short.get("mono", 0) + wanted - mono
        plans += [Plan("mono", half, (classes[i % len(classes)],)) for i in range(mono)]
        for relation in RELATIONS:
            for size in SIZES if parents or relation == "unrelated" else ():
                kind = f"poly{size}-{relation}"
                found = _groups(classes, size, relation, parents, wanted, seed, half, repeat)
                short[kind] = short.get(kind, 0) + wanted - len(found)
                plans += [Plan(kind, half, group) for group in found]
        plans += [Plan(name, half, ()) for name in noise for _ in range(wanted)]
    notes = [
        f"{kind}: {per_kind - missing} of {per_kind} units, the classes allow no more"
        for kind, missing in short.items()
        if missing
    ]
    return plans, notes


def _groups(
    classes: list[int],
    size: int,
    relation: str,
    parents: Parents,
    wanted: int,
    seed: int,
    half: str,
    repeat: bool,
) -> list[tuple[int, ...]]:
    found: list[tuple[int, ...]] = []
    for unit in range(wanted):
        for attempt in range(_TRIES):
            key = hash_keys(
                seed, string_key(f"validation/plan/{half}/{relation}"), size, unit, attempt
            )
            group = draw_classes(classes, size, relation == "related", parents, int(key))
            if group is None:
                return found
            if repeat or group not in found:
                found.append(group)
                break
        else:
            return found
    return found
