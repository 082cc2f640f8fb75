"""From raw scores and null draws to z, p, adjusted p, PSI, intervals and verdicts.

Every function is elementwise over channels or sums in a fixed tree, and transcendental functions
are SciPy's scalar ones (torch's vector code rounds differently in the tail of an array), so a
channel's numbers do not depend on the channels beside it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import numpy as np
import torch
from scipy import special
from torch import Tensor

from psi_engine.ops.exact import fold_mean, fold_sum

EPSILON = 1e-6
"""Added to a null's standard deviation; also the size below which both terms count as zero."""

TIE = 1e-9
"""A draw this close below the observation counts as reaching it: rounding must not lower a p."""


QUANTILES = 41
"""Quantiles kept of a null's draws, at the probabilities 0, 1/40 … 1."""


class NullSummary(NamedTuple):
    """What a null says about each channel.

    mean, std (ddof 1), p : float64 (channels,). quantiles : float32 (channels, 41), of the draws
    that p was counted among, see :func:`quantiles`.
    """

    mean: Tensor
    std: Tensor
    p: Tensor
    quantiles: Tensor


class Calibrated(NamedTuple):
    """z, logistic score and log of it, each float64 (channels,)."""

    z: Tensor
    hat: Tensor
    log_hat: Tensor


def summarise(observed: Tensor, draws: Tensor) -> NullSummary:
    """Null mean, standard deviation, permutation p and quantiles of each channel.

    Parameters
    ----------
    observed : Tensor, float64 (channels,)
    draws : Tensor, float64 (channels, replicates) or (replicates,)
        The latter is one null shared by all channels.

    Returns
    -------
    NullSummary
        p = (1 + #{draw ≥ observed}) / (1 + replicates) (Phipson and Smyth 2010, equation 2).
    """
    draws = torch.atleast_2d(draws)
    mean, std = moments(draws)
    reached = (draws >= observed[:, None] - TIE).sum(-1)
    p = permutation_p(reached, draws.shape[-1])
    shape = quantiles(draws).expand(len(observed), -1)
    return NullSummary(
        mean.expand_as(observed).clone(), std.expand_as(observed).clone(), p, shape.clone()
    )


def quantiles(draws: Tensor) -> Tensor:
    """The 41 quantiles of each row of draws, at the probabilities 0, 1/40 … 1.

    Parameters
    ----------
    draws : Tensor, float64 (rows, replicates)

    Returns
    -------
    Tensor
        float32 (rows, 41), ascending; the ends are the least and the greatest draw. All NaN where
        a draw is.

    Notes
    -----
    Linear between order statistics: definition 7 of Hyndman and Fan (1996), NumPy's default. The
    places are found in whole numbers, so no rounding moves an end inwards.
    """
    ordered = _ascending(draws)
    last, parts = draws.shape[-1] - 1, QUANTILES - 1
    place = torch.arange(QUANTILES, device=draws.device) * last
    low = place // parts
    below, above = ordered[:, low], ordered[:, (low + 1).clamp(max=last)]
    between = below + (place % parts).to(torch.float64) / parts * (above - below)
    between = between.masked_fill(ordered[:, -1:].isnan(), torch.nan)
    return (between + 0.0).to(torch.float32)  # of equal draws −0 and +0 any may come first


def _ascending(values: Tensor) -> Tensor:
    """Each row in ascending order, NaN last."""
    if values.device.type == "cpu":
        return torch.from_numpy(np.sort(values.numpy(), axis=1))  # several times Torch's speed
    return torch.sort(values, dim=1).values


def moments(draws: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and ddof-1 standard deviation over the last axis, in a fixed order of addition."""
    mean = fold_mean(draws)
    square = (draws - mean[..., None]) ** 2
    return mean, (fold_sum(square) / (draws.shape[-1] - 1)).sqrt()


def permutation_p(reached: Tensor, replicates: int) -> Tensor:
    """(1 + reached) / (1 + replicates), float64: never zero (Phipson and Smyth 2010)."""
    return (reached + 1).to(torch.float64) / (replicates + 1)


def standardise(difference: Tensor, std: Tensor) -> Tensor:
    """Difference from the null mean over σ + ε; 0 where both are below ε."""
    z = difference / (std + EPSILON)
    return torch.where((difference.abs() < EPSILON) & (std < EPSILON), 0.0, z)


def calibrate(observed: Tensor, mean: Tensor, std: Tensor) -> Calibrated:
    """Standard score z = (x − μ)/(σ + ε) and its logistic.

    Where |x − μ| and σ are both below ε, z is 0. Any shapes that broadcast; NaN stays NaN.
    """
    z = standardise(observed - mean, std)
    values = z.cpu().numpy()
    hat = torch.from_numpy(np.asarray(special.expit(values)))
    log_hat = torch.from_numpy(np.asarray(special.log_expit(values)))
    return Calibrated(z, hat.to(z.device), log_hat.to(z.device))


def adjust(p: Tensor, method: Literal["bh", "by"] = "bh") -> Tensor:
    """Adjusted p-values for the false discovery rate.

    Parameters
    ----------
    p : Tensor, float64 (channels,)
        NaN for channels that were not tested: they stay NaN and do not count.
    method : {"bh", "by"}
        Benjamini and Hochberg 1995, or Benjamini and Yekutieli 2001 (valid under any dependence).
    """
    out = torch.full_like(p, float("nan"))
    tested = torch.nonzero(~torch.isnan(p))[:, 0]
    count = len(tested)
    if count == 0:
        return out
    values, order = torch.sort(p[tested], stable=True)
    rank = torch.arange(1, count + 1, dtype=torch.float64, device=p.device)
    factor = count * float((1.0 / rank).sum()) if method == "by" else float(count)
    scaled = values * factor / rank
    stepped = torch.flip(torch.cummin(torch.flip(scaled, [0]), 0).values, [0]).clamp(max=1.0)
    out[tested[order]] = stepped
    return out


def intersection_union(p: Sequence[Tensor]) -> Tensor:
    """The largest p of the components: a test that all of them exceed chance (Berger 1982)."""
    return torch.stack(list(p)).amax(0)


def quantile(values: Tensor, q: float) -> Tensor:
    """Quantile over the last axis, linear between order statistics: float64 (...)."""
    ordered = torch.sort(values, dim=-1).values
    place = q * (values.shape[-1] - 1)
    low = int(place)
    high = min(low + 1, values.shape[-1] - 1)
    return ordered[..., low] + (place - low) * (ordered[..., high] - ordered[..., low])


def around(observed: Tensor, draws: Tensor, n: int, size: int) -> Tensor:
    """Scores of subsamples, moved and rescaled to vary about the score of the whole.

    Parameters
    ----------
    observed : Tensor, float64 (channels, 1)
    draws : Tensor, float64 (channels, subsamples)
        Scores of subsamples of ``size`` of the ``n`` patches.

    Notes
    -----
    observed + √(size/(n − size))·(draw − median of the draws): a subsample without replacement
    varies as σ²(1/size − 1/n), the estimate itself as σ²/n (the delete-d jackknife, Shao and Wu
    1989). For half samples the factor is 1. The median and not the observation is taken off,
    because a score may be biased in the number of patches.
    """
    scale = (size / max(n - size, 1)) ** 0.5
    return observed + scale * (draws - quantile(draws, 0.5)[:, None])


def subsampling_interval(psi: Tensor, draws: Tensor, level: float = 0.95) -> tuple[Tensor, Tensor]:
    """Interval of PSI from subsamples drawn without replacement.

    Parameters
    ----------
    psi : Tensor, float64 (channels,)
    draws : Tensor, float64 (channels, subsamples)
        log PSI of subsamples that vary as the estimate does, see :func:`around`.
    level : float
        Coverage.

    Returns
    -------
    tuple of Tensor
        Lower and upper end, float64 (channels,), on the scale of PSI; they always hold PSI.
    """
    tail = (1 - level) / 2
    ends = []
    for q in (tail, 1 - tail):
        end = quantile(draws, q)
        ends.append(torch.tensor([math.exp(min(x, 0.0)) for x in end.tolist()], dtype=psi.dtype))
    low_end, high_end = (end.to(psi.device) for end in ends)
    return torch.minimum(low_end, psi), torch.maximum(high_end, psi)


def verdicts(psi_p_adj: Tensor, clarity_p_adj: Tensor, alpha: float) -> tuple[str, ...]:
    """One word per channel at false discovery rate ``alpha``.

    ``polysemantic`` where PSI's adjusted p ≤ α; else ``monosemantic`` where the set is more
    coherent than the pool; else ``random-like``; ``not scorable`` where PSI has no p.
    """
    words = []
    for psi_p, clarity_p in zip(psi_p_adj.tolist(), clarity_p_adj.tolist(), strict=True):
        if psi_p != psi_p:
            words.append("not scorable")
        elif psi_p <= alpha:
            words.append("polysemantic")
        else:
            words.append("monosemantic" if clarity_p <= alpha else "random-like")
    return tuple(words)


def by_group(groups: Tensor, compare: Callable[[int, Tensor], NullSummary]) -> NullSummary:
    """Summaries of channels that share a null by group.

    Parameters
    ----------
    groups : Tensor, int64 (channels,)
    compare : callable
        ``compare(group, rows)`` with the channels' positions gives their summary.
    """
    mean = torch.full(groups.shape, torch.nan, dtype=torch.float64, device=groups.device)
    shape = mean.to(torch.float32)[:, None].repeat(1, QUANTILES)
    out = NullSummary(mean, mean.clone(), mean.clone(), shape)
    for group in torch.unique(groups).tolist():
        rows = torch.nonzero(groups == group)[:, 0]
        for whole, part in zip(out, compare(group, rows), strict=True):
            whole[rows] = part
    return out
