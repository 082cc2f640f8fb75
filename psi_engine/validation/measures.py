"""Measures made of the evidence: components under each null, their combinations, the peers'."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import special

from psi_engine.validation.evidence import CONTROL_NULL, Columns

Floats = NDArray[np.float64]

Q_NULL = "permutation"
"""The Q null that enters combinations; Q alone is judged under every null."""


class Evidence(NamedTuple):
    """What a combination may look at: one set of components under one choice of nulls.

    raw, z, p : by component (``s``, ``q`` where there are labels, ``d`` where there is text),
    float64 (units,), NaN where a unit has no score. kinds : str (units,), what each unit is.
    tuning : bool (units,), units of the half that may be fitted on.
    """

    raw: Mapping[str, Floats]
    z: Mapping[str, Floats]
    p: Mapping[str, Floats]
    kinds: NDArray[np.str_]
    tuning: NDArray[np.bool_]


Combination = Callable[[Evidence], Floats]
"""One number per unit, float64 (units,), high = polysemantic; kinds may be used of tuning only."""


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


def psi(evidence: Evidence) -> Floats:
    """Log PSI: the sum of log-sigmoids of z over the components (METHOD, section 4)."""
    parts = [special.log_expit(z) for z in evidence.z.values()]
    return np.asarray(np.sum(parts, axis=0), dtype=np.float64)


COMBINATIONS: Mapping[str, Combination] = {"PSI": psi}
"""Combinations by name; a new one is a function and a name."""


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
        Each is applied to every S null × D measure, level and null × labels.
    """
    yield from _single(columns)
    s_nulls = [name.split("|")[1][:-2] for name in columns if name[:2] == "s|" and _is_z(name)]
    d_names: list[str] = [n[:-2] for n in columns if n[:2] == "d:" and _is_z(n)] or [""]
    for labels, q in (("none", ""), ("full", "q"), ("coarse", "q_coarse")):
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
                for name, combine in combinations.items():
                    parts = [f"S {s_null}", *([f"D {d_measure} {d_level} {d_null}"] * bool(d_name))]
                    yield Measure(
                        f"{name}: {', '.join(parts)}, labels {labels}",
                        name, s_null, d_measure, d_level, d_null, labels, combine(found),
                    )  # fmt: skip


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


__all__ = [
    "COMBINATIONS",
    "CONTROL_NULL",
    "Q_NULL",
    "Combination",
    "Evidence",
    "Measure",
    "measures",
    "psi",
]
