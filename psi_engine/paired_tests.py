"""Paired comparisons: t and Wilcoxon tests, effect sizes, Holm's correction, bootstrap intervals.

The t test is SciPy's, and so is Wilcoxon's for many pairs. For fewer the signed ranks' exact null
is counted here, ties included: SciPy goes through all 2ⁿ signs for them, seconds a test, and
takes the normal approximation from 14 pairs on.
"""

from __future__ import annotations

import warnings
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from psi_engine.detection import interval, resample
from psi_engine.errors import InputError

Floats = NDArray[np.float64]

EXACT_PAIRS = 50
"""Most pairs that differ for which Wilcoxon's p is exact: 2⁵⁰ is still a whole float64."""


_ROUNDING = 16 * float(np.finfo(np.float64).eps)
# Of the larger value: a spread of differences within it is what rounding leaves.


class PairedTest(NamedTuple):
    """A comparison of pairs; NaN where a number is not defined.

    n : pairs. difference : mean of x − y. t, t_p : paired t statistic and two-sided p.
    wilcoxon, wilcoxon_p : the smaller sum of signed ranks, zeros left out, and two-sided p.
    dz : mean over ddof-1 standard deviation of the differences (Cohen 1988, section 2.3.5).
    rank_biserial : (R₊ − R₋)/(R₊ + R₋) of the ranks' sums (Kerby 2014), in [−1, 1].
    """

    n: int
    difference: float
    t: float
    t_p: float
    wilcoxon: float
    wilcoxon_p: float
    dz: float
    rank_biserial: float


def paired_test(x: ArrayLike, y: ArrayLike) -> PairedTest:
    """Compare pairs, two-sided.

    Parameters
    ----------
    x, y : array, (n,)
        Finite; x[i] belongs to y[i].

    Returns
    -------
    PairedTest
        With fewer than two pairs only ``n`` and ``difference`` are defined. Where no pair
        differs, nothing speaks against equality: statistics and effects 0, p 1. Where all differ
        by the same amount, but for float64's rounding of the values, there is no spread to hold
        it against: t, its p and dz are NaN.

    Raises
    ------
    InputError
        Different lengths, or values that are not finite.

    Notes
    -----
    Wilcoxon's p is exact over all assignments of signs up to 50 pairs that differ, with mean ranks
    for ties; else it is the normal approximation with the variance corrected for ties.
    """
    first, second = np.asarray(x, np.float64), np.asarray(y, np.float64)
    if first.ndim != 1 or first.shape != second.shape:
        raise InputError(
            "pairs do not match", got=f"{first.shape} and {second.shape}", expected="(n,) twice"
        )
    change = first - second
    if not np.isfinite(change).all():
        raise InputError("pairs that are not finite", got=int((~np.isfinite(change)).sum()))
    n, nan = len(change), float("nan")
    mean = float(change.mean()) if n else nan
    if n < 2:
        return PairedTest(n, mean, nan, nan, nan, nan, nan, nan)
    if not change.any():
        return PairedTest(n, 0.0, 0.0, 1.0, 0.0, 1.0, 0.0, 0.0)
    t = t_p = dz = nan
    scale = max(np.abs(first).max(), np.abs(second).max())
    if np.ptp(change) > _ROUNDING * scale:
        with warnings.catch_warnings():
            # Differences that nearly agree: SciPy warns, and the numbers stand.
            warnings.simplefilter("ignore", RuntimeWarning)
            tested = stats.ttest_rel(first, second)
        t, t_p = float(tested.statistic), float(tested.pvalue)
        dz = mean / float(change.std(ddof=1))
    moved = change[change != 0]
    ranks = stats.rankdata(np.abs(moved))
    positive, whole = float(ranks[moved > 0].sum()), float(ranks.sum())
    least = min(positive, whole - positive)
    if len(moved) <= EXACT_PAIRS:
        ranked_p = _exact_p(ranks, least)
    else:
        ranked_p = float(stats.wilcoxon(moved, method="asymptotic").pvalue)
    return PairedTest(n, mean, t, t_p, least, ranked_p, dz, 2 * positive / whole - 1)


def _exact_p(ranks: Floats, least: float) -> float:
    """Twice the share of the 2ⁿ signs whose positive ranks sum to ``least`` or less, at most 1."""
    doubled = np.rint(2 * ranks).astype(np.int64)  # mean ranks of ties are halves
    ways = np.zeros(int(doubled.sum()) + 1)
    ways[0] = 1
    for rank in doubled:
        ways[rank:] += ways[:-rank].copy()
    return min(1.0, float(2 * ways[: round(2 * least) + 1].sum() / 2.0 ** len(ranks)))


def holm(p: ArrayLike) -> Floats:
    """Adjust p-values for the family-wise error rate by Holm's step-down method (1979).

    Parameters
    ----------
    p : array, (tests,)
        In [0, 1]; NaN for tests that could not be made: they stay NaN and do not count.

    Returns
    -------
    ndarray
        float64 (tests,), at least ``p``, at most 1.
    """
    values = np.asarray(p, np.float64)
    out = np.full(values.shape, np.nan)
    made = np.flatnonzero(~np.isnan(values))
    order = made[np.argsort(values[made], kind="stable")]
    factor = np.arange(len(order), 0, -1)
    out[order] = np.minimum(np.maximum.accumulate(values[order] * factor), 1.0)
    return out


def mean_intervals(key: int, values: Floats, resamples: int) -> tuple[Floats, Floats]:
    """Bootstrap percentile intervals of means over the same resampled items.

    Parameters
    ----------
    key : int
        Of the draws.
    values : ndarray, float64 (quantities, n)
        Quantities of the same n items: an item is drawn with all of its values.
    resamples : int

    Returns
    -------
    tuple of ndarray
        Lower and upper ends, float64 (quantities,), at :data:`psi_engine.detection.LEVEL`; NaN
        with fewer than two items.
    """
    items = values.shape[1]
    if items < 2:
        blank = np.full(len(values), np.nan)
        return blank, blank.copy()
    counts = resample(key, items, resamples)[:, 1:]  # the first column is the sample itself
    return interval(values @ counts / items)
