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
from psi_engine.validation.combinations import FITTED
from psi_engine.validation.measures import Measure
from psi_engine.validation.plan import HALVES, RELATIONS, SIZES

RESAMPLES = 400
"""Bootstrap resamples of the units, the same ones for every measure."""

MOST_RESAMPLES = 10_000
"""More would decide no third digit and need memory for every unit of each."""

PROJECTION = "noise-projection"

WORST = {
    **{relation: f"worst {relation}" for relation in RELATIONS},
    "projection": f"worst unrelated / {PROJECTION}",
}
"""The headline rows: the lowest area over some of a measure's contrasts.

``unrelated`` and ``related``: classes of that relation against mono and noise. ``projection``:
unrelated classes against random projections, which have classes of their own
(:mod:`psi_engine.validation.planted`) and are therefore in no other headline.
"""

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

    @property
    def headline(self) -> str | None:
        """Key of :data:`WORST` that it counts towards."""
        if self.low != PROJECTION:
            return self.relation
        return "projection" if self.relation == "unrelated" else None


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
        One row per measure, half (tuning, held-out, both) and contrast, and per half one for
        each headline of :data:`WORST`: AUROC and average precision with bootstrap
        percentile intervals (:data:`psi_engine.detection.LEVEL`), units of both kinds, and
        how many of them have no score. The interval of a worst row is of the lowest area over
        the contrasts in each resample. A minimum of noisy areas lies below the lowest true one,
        so point and interval are pessimistic, the more the fewer units there are.

    Raises
    ------
    InputError
        There is nothing to tell apart.
    """
    listed = [measure for measure in listed if not np.isnan(measure.values).all()]
    values = np.array([measure.values for measure in listed])
    columns: dict[str, list[Any]] = {name: [] for name in _SCHEMA.names}
    for name in (*HALVES, BOTH):
        inside = np.ones(len(kinds), bool) if name == BOTH else half == name
        if not inside.any() or not listed:
            continue
        where = {kind: np.flatnonzero(inside & (kinds == kind)) for kind in set(kinds[inside])}
        counts = {
            kind: resample(_key(seed, suite, name, kind), len(units), resamples)
            for kind, units in where.items()
        }
        # what was fitted on the tuning half has no business in an area over both
        kept = [n for n, m in enumerate(listed) if name != BOTH or m.family not in FITTED]
        for of in _judge_half(values, contrasts(where), where, counts):
            for key, cells in of.items():
                columns[key] += [cells[number] for number in kept]
            columns["suite"] += [suite] * len(kept)
            columns["half"] += [name] * len(kept)
            for number in kept:
                columns["measure"].append(listed[number].name)
                for key in Measure._fields[1:-1]:
                    columns[key].append(getattr(listed[number], key))
    return pa.table(columns, schema=_SCHEMA)


def _judge_half(
    values: Floats,
    pairs: list[Contrast],
    where: Mapping[str, NDArray[np.intp]],
    counts: Mapping[str, Floats],
) -> list[dict[str, list[Any]]]:
    """Columns over the measures of each contrast and of each headline."""
    names, areas, sizes = [], [], []
    for pair in pairs:
        high, low = values[:, where[pair.high]], values[:, where[pair.low]]
        names.append(pair.name)
        areas.append(weighted_areas(high, low, counts[pair.high], counts[pair.low]))
        missing = np.isnan(high).sum(1) + np.isnan(low).sum(1)
        sizes.append((high.shape[1], low.shape[1], missing))
    for headline, title in WORST.items():
        own = [place for place, pair in enumerate(pairs) if pair.headline == headline]
        if own:
            fields = zip(*(areas[place] for place in own), strict=True)
            names.append(title)
            areas.append(Areas(*(np.min(field, axis=0) for field in fields)))
            n_high, n_low, missing = zip(*(sizes[place] for place in own), strict=True)
            sizes.append((min(n_high), min(n_low), np.max(missing, axis=0)))
    found = []
    for name, (n_high, n_low, missing), both in zip(names, sizes, areas, strict=True):
        columns: dict[str, list[Any]] = {"contrast": [name] * len(values)}
        columns |= {"n_high": [n_high] * len(values), "n_low": [n_low] * len(values)}
        columns["missing"] = missing.tolist()
        for area, draws in zip(("auroc", "ap"), both, strict=True):
            low, high = interval(draws[:, 1:])  # column 0 is the sample itself
            columns[area] = draws[:, 0].tolist()
            columns |= {f"{area}_low": low.tolist(), f"{area}_high": high.tolist()}
        found.append(columns)
    return found


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
