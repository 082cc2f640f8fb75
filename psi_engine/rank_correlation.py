"""How far two measures agree on the order of channels: Spearman and Kendall, with intervals.

A bootstrap resample is a column of counts (how often each channel is drawn), so that the ranks of
all resamples come out of one sort of the channels.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from psi_engine.detection import Floats, interval, resample
from psi_engine.errors import InputError

LEAST = 4
"""Pairs needed for a coefficient."""

_AT_ONCE = 1 << 22
# Entries of the matrix of concordant pairs held together.


class RankCorrelation(NamedTuple):
    """Agreement of two measures; all NaN but ``n`` where there are too few pairs or no spread.

    n : pairs with both values. spearman, kendall (τ-b), each with the ends of its 95 % percentile
    interval and the two-sided p of SciPy's test against no association.
    """

    n: int
    spearman: float
    spearman_low: float
    spearman_high: float
    spearman_p: float
    kendall: float
    kendall_low: float
    kendall_high: float
    kendall_p: float


def rank_correlation(
    x: ArrayLike, y: ArrayLike, *, key: int, resamples: int = 1000
) -> RankCorrelation:
    """Rank correlations of two measures of the same channels.

    Parameters
    ----------
    x, y : array, float (n,)
        A pair with a NaN is left out; ±infinity has a rank like any other value.
    key : int
        Of the bootstrap's draws.
    resamples : int

    Returns
    -------
    RankCorrelation

    Raises
    ------
    InputError
        x and y differ in shape or are not one-dimensional.

    References
    ----------
    Kendall, "The treatment of ties in ranking problems", Biometrika 33 (1945): τ-b.
    """
    first, second = np.asarray(x, np.float64), np.asarray(y, np.float64)
    if first.ndim != 1 or first.shape != second.shape:
        raise InputError(
            "measures do not fit each other", got=(first.shape, second.shape), expected="(n,) twice"
        )
    both = ~(np.isnan(first) | np.isnan(second))
    first, second = first[both], second[both]
    n = len(first)
    if n < LEAST or len(np.unique(first)) < 2 or len(np.unique(second)) < 2:
        return RankCorrelation(n, *[np.nan] * 8)
    ranks = stats.rankdata(first), stats.rankdata(second)
    spearman, kendall = stats.spearmanr(*ranks), stats.kendalltau(*ranks)
    counts = resample(key, n, resamples)[:, 1:]
    ends = [_ends(draws(*ranks, counts)) for draws in (resampled_spearman, resampled_kendall)]
    return RankCorrelation(
        n,
        float(spearman.statistic),
        *ends[0],
        float(spearman.pvalue),
        float(kendall.statistic),
        *ends[1],
        float(kendall.pvalue),
    )


def _ends(draws: Floats) -> tuple[float, float]:
    """Percentile interval; resamples in which a measure is constant have no coefficient."""
    there = draws[~np.isnan(draws)]
    if not len(there):
        return np.nan, np.nan
    low, high = interval(there)
    return float(low), float(high)


def resampled_spearman(x: Floats, y: Floats, counts: Floats) -> Floats:
    """Spearman's ρ under each column of counts, float64 (resamples,).

    Parameters
    ----------
    x, y : ndarray, float64 (n,)
    counts : ndarray, float64 (n, resamples)
        Whole numbers: how often each pair is drawn.

    Returns
    -------
    ndarray
        Pearson's correlation of the midranks that SciPy would give the drawn pairs; NaN where a
        measure is constant over them.
    """
    total = counts.sum(0)
    parts = []
    for values in (x, y):
        group, before = _group_counts(values, counts)
        # midrank: those below, and half of those equal (itself included) and a half
        rank = (before + (group + 1) / 2)[np.unique(values, return_inverse=True)[1]]
        parts.append(rank - (total + 1) / 2)
    covariance = (counts * parts[0] * parts[1]).sum(0)
    spread = [(counts * part**2).sum(0) for part in parts]
    return _ratio(covariance, np.sqrt(spread[0] * spread[1]))


def resampled_kendall(x: Floats, y: Floats, counts: Floats) -> Floats:
    """Kendall's τ-b under each column of counts, float64 (resamples,); see above for the arguments.

    Notes
    -----
    With s the signs of differences and w the counts, concordant minus discordant pairs are
    ½ Σ w_i w_j s(x_i − x_j) s(y_i − y_j), and the pairs that x does not tie
    ½ (N² − Σ_groups w_g²). Every sum is one of whole numbers, so its order does not matter.
    """
    n, total = len(x), counts.sum(0)
    drawn = counts.astype(np.float32)  # sums of n whole numbers of this size are exact
    agree = np.zeros(counts.shape[1])
    step = max(1, _AT_ONCE // n)
    for start in range(0, n, step):
        part = slice(start, start + step)
        signs = _signs(x, part) * _signs(y, part)
        agree += (counts[part] * (signs @ drawn)).sum(0)
    untied = [total**2 - (_group_counts(values, counts)[0] ** 2).sum(0) for values in (x, y)]
    return _ratio(agree, np.sqrt(untied[0]) * np.sqrt(untied[1]))


def _signs(values: Floats, part: slice) -> NDArray[np.float32]:
    return np.sign(values[part, None] - values).astype(np.float32)


def _group_counts(values: Floats, counts: Floats) -> tuple[Floats, Floats]:
    """Draws of each distinct value, ascending, and of all values below it: (values, resamples)."""
    distinct, group = np.unique(values, return_inverse=True)
    order = np.argsort(group, kind="stable")
    starts = np.searchsorted(group[order], np.arange(len(distinct)))
    held = np.add.reduceat(counts[order], starts, axis=0)
    return held, np.cumsum(held, axis=0) - held


def _ratio(above: Floats, below: Floats) -> Floats:
    out = np.full_like(above, np.nan)
    return np.divide(above, below, out=out, where=below > 0)
