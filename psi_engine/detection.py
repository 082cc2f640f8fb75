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


class Areas(NamedTuple):
    """AUROC and average precision of each resample, float64 (resamples,) each."""

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
    """AUROC and average precision under each column of counts.

    Parameters
    ----------
    high, low : ndarray, float64 (n,) and (m,)
        Scores of the kind that should be high and of the other. A missing score (NaN) counts
        against the measure: lowest where it should be high, highest where it should be low.
    high_counts, low_counts : ndarray, float64 (n, resamples) and (m, resamples)

    Returns
    -------
    Areas

    Notes
    -----
    With TP and FP the counts at or above each distinct score, AUROC is the trapezoid area
    Σ ΔFP·(TP − ΔTP/2)/(P·N) and average precision Σ ΔTP/P · TP/(TP + FP), the step area that
    scikit-learn's ``average_precision_score`` computes: no interpolation between thresholds.
    """
    values = np.concatenate(
        [np.where(np.isnan(high), -np.inf, high), np.where(np.isnan(low), np.inf, low)]
    )
    order = np.argsort(-values, kind="stable")
    ordered = values[order]
    last = np.append(ordered[1:] != ordered[:-1], True)  # where a group of equal scores ends
    counts = np.concatenate([high_counts, low_counts])[order]
    of_high = (order < len(high))[:, None]
    true = np.cumsum(np.where(of_high, counts, 0.0), axis=0)[last]
    false = np.cumsum(np.where(of_high, 0.0, counts), axis=0)[last]
    true_step = np.diff(true, axis=0, prepend=0.0)
    false_step = np.diff(false, axis=0, prepend=0.0)
    auroc = (false_step * (true - true_step / 2)).sum(0) / (true[-1] * false[-1])
    precision = true / np.maximum(true + false, 1.0)
    return Areas(auroc, (true_step * precision).sum(0) / true[-1])


def interval(draws: Floats) -> tuple[float, float]:
    """Percentile interval of bootstrap draws (resamples,) at :data:`LEVEL`."""
    low, high = np.quantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)
