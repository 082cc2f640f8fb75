"""The table of ground truth: how well each measure tells each kind of unit from each other."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from psi_engine.detection import Areas, Floats, interval, resample, weighted_areas
from psi_engine.errors import InputError
from psi_engine.ops.random import hash_keys, string_key
from psi_engine.validation.measures import Measure
from psi_engine.validation.plan import HALVES, RELATIONS, SIZES

RESAMPLES = 400
"""Bootstrap resamples of the units, the same ones for every measure."""

WORST = {relation: f"worst {relation}" for relation in RELATIONS}
"""The headline rows: the lowest area over a measure's contrasts, by relation of the classes."""

BOTH = "both"


class Contrast(NamedTuple):
    """Which kind should be above which."""

    high: str
    low: str
    relation: str

    @property
    def name(self) -> str:
        """As it stands in the table."""
        return f"{self.high} / {self.low}"


def contrasts(kinds: Iterable[str]) -> list[Contrast]:
    """Every polysemantic kind there is against mono and against each noise kind there is.

    Raises
    ------
    InputError
        No such pair.
    """
    there = set(kinds)
    lows = [kind for kind in sorted(there) if not kind.startswith("poly")]
    found = [
        Contrast(f"poly{size}-{relation}", low, relation)
        for relation in RELATIONS
        for size in SIZES
        for low in lows
        if f"poly{size}-{relation}" in there
    ]
    if not found:
        raise InputError(
            "no polysemantic units to tell from others",
            got=", ".join(sorted(there)),
            expected="poly kinds, and mono or noise",
            fix="more classes, or more sets and units",
        )
    return found


def judge(
    suite: str,
    kinds: NDArray[np.str_],
    half: NDArray[np.str_],
    listed: Iterable[Measure],
    seed: int,
    resamples: int = RESAMPLES,
) -> pa.Table:
    """Judge measures on the units of one suite.

    Parameters
    ----------
    suite : str
        Name, for the table.
    kinds, half : ndarray of str (units,)
    listed : iterable of Measure

    Returns
    -------
    pyarrow.Table
        One row per measure, half (tuning, held-out, both) and contrast, and per half and
        relation one for the worst contrast: AUROC and average precision with bootstrap
        percentile intervals (:data:`psi_engine.detection.LEVEL`), units of both kinds, and
        how many of them have no score. The interval of a worst row is of the lowest area over
        the contrasts in each resample, so it knows that the worst was picked.

    Raises
    ------
    InputError
        There is nothing to tell apart.
    """
    listed = list(listed)
    rows: list[dict[str, Any]] = []
    for name in (*HALVES, BOTH):
        inside = np.ones(len(kinds), bool) if name == BOTH else half == name
        pairs = contrasts(kinds[inside]) if inside.any() else []
        where = {kind: np.flatnonzero(inside & (kinds == kind)) for kind in set(kinds[inside])}
        counts = {
            kind: resample(_key(seed, suite, name, kind), len(units), resamples)
            for kind, units in where.items()
        }
        for measure in listed:
            if np.isnan(measure.values).all():
                continue
            rows += _judge_one(measure, suite, name, pairs, where, counts)
    return pa.Table.from_pylist(rows, schema=_SCHEMA)


def _judge_one(
    measure: Measure,
    suite: str,
    half: str,
    pairs: list[Contrast],
    where: Mapping[str, NDArray[np.intp]],
    counts: Mapping[str, Floats],
) -> list[dict[str, Any]]:
    about = {"suite": suite, "half": half, **measure._asdict(), "measure": measure.name}
    del about["name"], about["values"]
    rows = []
    found: dict[str, list[Areas]] = {}
    for pair in pairs:
        high, low = (measure.values[where[kind]] for kind in (pair.high, pair.low))
        areas = weighted_areas(high, low, counts[pair.high], counts[pair.low])
        found.setdefault(pair.relation, []).append(areas)
        missing = int(np.isnan(high).sum() + np.isnan(low).sum())
        sizes = {"n_high": len(high), "n_low": len(low), "missing": missing}
        rows.append({**about, "contrast": pair.name, **sizes, **_summary(areas)})
    plain = list(rows)
    for relation, several in found.items():
        lowest = Areas(*(np.min(field, axis=0) for field in zip(*several, strict=True)))
        own = [row for row, pair in zip(plain, pairs, strict=True) if pair.relation == relation]
        sizes = {key: min(row[key] for row in own) for key in ("n_high", "n_low")}
        missing = max(row["missing"] for row in own)
        lowest_row = {**sizes, "missing": missing, **_summary(lowest)}
        rows.append({**about, "contrast": WORST[relation], **lowest_row})
    return rows


def _summary(areas: Areas) -> dict[str, float]:
    """Take the sample's own areas, column 0, and the intervals of the resamples."""
    summary: dict[str, float] = {}
    for name, draws in (("auroc", areas.auroc), ("ap", areas.average_precision)):
        low, high = interval(draws[1:])
        summary |= {name: float(draws[0]), f"{name}_low": low, f"{name}_high": high}
    return summary


def _key(seed: int, suite: str, half: str, kind: str) -> int:
    return int(hash_keys(seed, string_key(f"validation/bootstrap/{suite}/{half}/{kind}")))


_SCHEMA = pa.schema(
    [
        *((name, pa.string()) for name in ("suite", "half", "measure", "family", "s_null")),
        *((name, pa.string()) for name in ("d_measure", "d_level", "d_null", "labels", "contrast")),
        *((name, pa.int64()) for name in ("n_high", "n_low", "missing")),
        *((f"auroc{end}", pa.float64()) for end in ("", "_low", "_high")),
        *((f"ap{end}", pa.float64()) for end in ("", "_low", "_high")),
    ]
)
