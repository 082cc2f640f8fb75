"""How well a score tells two kinds apart: AUROC, average precision, and their bootstrap.

Higher scores should mean the first kind. Everything is computed from counts per threshold, so
that a resample is a set of counts and a thousand of them are one array.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from psi_engine.errors import InputError
from psi_engine.ops.random import hash_keys, uniform

Floats = NDArray[np.float64]

LEVEL = 0.95
"""Coverage of the percentile intervals."""

_AT_ONCE = 1 << 18
# Numbers worked on together: what stays near a core.


class Areas(NamedTuple):
    """AUROC and average precision of each resample, float64 (..., resamples) each."""

    auroc: Floats
    average_precision: Floats


def rank_auroc(high: ArrayLike, low: ArrayLike) -> float:
    """Probability that a draw of ``high`` exceeds a draw of ``low``, ties counting half.

    Parameters
    ----------
    high, low : array
        (n,) and (m,), without NaN; the Mann–Whitney statistic over n·m is returned.

    Raises
    ------
    InputError
        One of them is empty.
    """
    above = np.sort(np.asarray(low, np.float64).ravel())
    points = np.asarray(high, np.float64).ravel()
    if not len(above) or not len(points):
        raise InputError(
            "AUROC needs units of both kinds", got=f"{len(points)} against {len(above)}"
        )
    left = np.searchsorted(above, points, "left")
    right = np.searchsorted(above, points, "right")
    return float((left + right).sum() / (2 * len(points) * len(above)))


def resample(key: int, items: int, resamples: int) -> Floats:
    """How often each item is drawn in each resample: whole numbers, float64 (items, resamples).

    Parameters
    ----------
    key : int
        Of the draws; the first column counts every item once (the sample itself), the others
        are ``items`` draws with replacement.
    """
    draws = hash_keys(key, torch.arange(resamples)[:, None])
    chosen = (uniform(draws, torch.arange(items)) * items).to(torch.int64)
    counts = torch.zeros(resamples + 1, items, dtype=torch.float64)
    counts[0] = 1.0
    counts[1:].scatter_add_(1, chosen, torch.ones_like(chosen, dtype=torch.float64))
    return np.ascontiguousarray(counts.numpy().T)


def weighted_areas(high: Floats, low: Floats, high_counts: Floats, low_counts: Floats) -> Areas:
    """AUROC and average precision of several scores under each column of counts.

    Parameters
    ----------
    high, low : ndarray, float64 (scores, n) and (scores, m)
        Values of the kind that should be high and of the other. A missing one (NaN) counts
        against the score: lowest where it should be high, highest where it should be low; with
        nothing but missing ones on a side that makes 0, which the caller may not want to show.
    high_counts, low_counts : ndarray, float64 (n, resamples) and (m, resamples)

    Returns
    -------
    Areas
        Each (scores, resamples).

    Notes
    -----
    With TP and FP the counts at or above each distinct value, AUROC is the trapezoid area
    Σ ΔFP·(TP − ΔTP/2)/(P·N) and average precision Σ ΔTP/P · TP/(TP + FP), the step area that
    scikit-learn's ``average_precision_score`` computes: no interpolation between thresholds.
    """
    counts = np.concatenate([high_counts, low_counts])
    values = np.concatenate(
        [np.where(np.isnan(high), -np.inf, high), np.where(np.isnan(low), np.inf, low)], axis=1
    )
    step = max(1, _AT_ONCE // counts.size)
    parts = [
        _areas(values[start : start + step], counts, high.shape[1])
        for start in range(0, len(values), step)
    ]
    return Areas(*map(np.concatenate, zip(*parts, strict=True)))


def _areas(values: Floats, counts: Floats, high: int) -> Areas:
    """Areas of some scores; the first ``high`` columns of ``values`` should be high."""
    order = np.argsort(-values, axis=1, kind="stable")
    ordered = np.take_along_axis(values, order, axis=1)
    drawn = counts[order]
    true = np.cumsum(np.where((order < high)[..., None], drawn, 0.0), axis=1)
    false = np.cumsum(drawn, axis=1) - true
    last = np.ones_like(ordered, dtype=bool)
    last[:, :-1] = ordered[:, 1:] != ordered[:, :-1]
    if not last.all():
        # every member of a group of equal values stands where the group ends
        place = np.where(last, np.arange(last.shape[1]), last.shape[1])
        end = np.minimum.accumulate(place[:, ::-1], axis=1)[:, ::-1, None]
        true, false = (np.take_along_axis(x, end, axis=1) for x in (true, false))
    true_step, false_step = true.copy(), false.copy()
    true_step[:, 1:] -= true[:, :-1]
    false_step[:, 1:] -= false[:, :-1]
    positives, negatives = true[:, -1], false[:, -1]
    auroc = (false_step * (true - true_step / 2)).sum(1) / (positives * negatives)
    precision = true / np.maximum(true + false, 1.0)
    return Areas(auroc, (true_step * precision).sum(1) / positives)


def interval(draws: Floats) -> tuple[Floats, Floats]:
    """Percentile intervals of bootstrap draws (..., resamples) at :data:`LEVEL`: (...) twice."""
    low, high = np.quantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=-1)
    return low, high
