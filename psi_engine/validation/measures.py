"""Measures made of the evidence: components under each null, their combinations, the peers'."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from psi_engine.validation.combinations import COMBINATIONS, Combination, Evidence, Floats
from psi_engine.validation.evidence import Columns

LABELS = {"none": "", "full": "q", "coarse": "q_coarse"}
"""Which column of Q a combination takes, by the labels it may see."""

CANDIDATES = frozenset({"pool", "neighborhood", "text-rotation", ""})
"""Nulls a preset could take: only under these are combinations other than PSI judged."""

Q_NULL = "permutation"
"""The Q null that enters combinations; Q alone is judged under every null."""


class Measure(NamedTuple):
    """One column to judge.

    name : unique. family : ``component``, ``peer``, ``control`` or the name of a combination.
    The other fields are empty where they do not apply; ``labels`` is ``full``, ``coarse`` or
    ``none``. values : float64 (units,), high = polysemantic.
    """

    name: str
    family: str
    s_null: str
    d_measure: str
    d_level: str
    d_null: str
    labels: str
    values: Floats


def combined_name(
    combination: str, s_null: str, d_measure: str, d_level: str, d_null: str, labels: str
) -> str:
    """Name of a combination of components; an empty ``d_measure`` leaves D out."""
    d = f", D {d_measure} {d_level} {d_null}" if d_measure else ""
    return f"{combination}: S {s_null}{d}, labels {labels}"


def measures(
    columns: Columns,
    kinds: NDArray[np.str_],
    tuning: NDArray[np.bool_],
    combinations: Mapping[str, Combination] = COMBINATIONS,
) -> Iterator[Measure]:
    """List everything that can be judged.

    Parameters
    ----------
    columns : dict of str to ndarray
        As :func:`psi_engine.validation.evidence.gather` gives them.
    kinds, tuning : ndarray (units,)
        For :class:`Evidence`.
    combinations : mapping
        Each is applied to every S null × D measure, level and null × labels; those not named
        PSI under :data:`CANDIDATES` only.
    """
    yield from _single(columns)
    s_nulls = [name.split("|")[1][:-2] for name in columns if name[:2] == "s|" and _is_z(name)]
    d_names: list[str] = [n[:-2] for n in columns if n[:2] == "d:" and _is_z(n)] or [""]
    for labels, q in LABELS.items():
        if q and f"{q}|{Q_NULL}.z" not in columns:
            continue
        for s_null in s_nulls:
            for d_name in d_names:
                chosen = {"s": f"s|{s_null}", "q": q and f"{q}|{Q_NULL}", "d": d_name}
                used = {component: name for component, name in chosen.items() if name}
                if len(used) < 2:
                    continue
                found = Evidence(
                    {component: columns[name.split("|")[0]] for component, name in used.items()},
                    {component: columns[name + ".z"] for component, name in used.items()},
                    {component: columns[name + ".p"] for component, name in used.items()},
                    kinds,
                    tuning,
                )
                d_measure, d_level, d_null = _d_parts(d_name)
                about = (s_null, d_measure, d_level, d_null, labels)
                candidate = {s_null, d_null} <= CANDIDATES
                for name, combine in combinations.items():
                    if name != "PSI" and not candidate:
                        continue
                    yield Measure(combined_name(name, *about), name, *about, combine(found))


def _single(columns: Columns) -> Iterator[Measure]:
    """Every component alone, raw and under each null, then the peers and the control."""
    for name, values in columns.items():
        value, _, rest = name.partition("|")
        if name.startswith("peer:"):
            yield Measure(name[5:], "peer", "", "", "", "", "none", values)
        elif name.startswith("rotated-d:"):
            null = rest[:-2]
            if rest and not _is_z(name):
                continue
            d_measure, d_level, _ = _d_parts(name.removeprefix("rotated-"))
            title = f"D {d_measure} {d_level} {null or 'raw'}, texts rotated"
            yield Measure(title, "control", "", d_measure, d_level, null, "none", values)
        elif value.split(":")[0] in ("s", "d", "q", "q_coarse") and (not rest or _is_z(name)):
            yield _component(value, rest[:-2], values)


def _component(value: str, null: str, values: Floats) -> Measure:
    end = null or "raw"
    if value == "s":
        return Measure(f"S {end}", "component", null, "", "", "", "none", values)
    if value.startswith("d:"):
        d_measure, d_level, _ = _d_parts(value)
        title = f"D {d_measure} {d_level} {end}"
        return Measure(title, "component", "", d_measure, d_level, null, "none", values)
    labels = "coarse" if value == "q_coarse" else "full"
    return Measure(f"Q {end}, labels {labels}", "component", "", "", "", "", labels, values)


def _d_parts(name: str) -> tuple[str, str, str]:
    """Measure, level and null of a column ``d:MEASURE:LEVEL|NULL``; empty strings of ``""``."""
    if not name:
        return "", "", ""
    value, _, null = name.partition("|")
    _, measure, level = value.split(":")
    return measure, level, null


def _is_z(name: str) -> bool:
    return name.endswith(".z")
