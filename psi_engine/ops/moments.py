"""Streaming statistics of channels whose bits do not depend on the order of the images.

Floating-point addition is not associative, so a mean over images would change in its last bits
with the shards that were merged. Here a float64 is split without loss into integers of 40 bits
at fixed binary places (a small superaccumulator; Kulisch, *Computer Arithmetic and Validity*,
2013), and integers add exactly in any order.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from psi_engine.types import ActivationStats

_LIMB_BITS = 40
_PLACES = tuple(range(6, -5, -1))  # weights 2^(40·6) … 2^(40·−4): |x| from 2^−160 to 2^280
LIMBS = len(_PLACES)
"""Integers that stand for one number."""
WEIGHTS = tuple(2.0 ** (_LIMB_BITS * place) for place in _PLACES)
"""What each of them counts, largest first."""

# Elements widened to float64 at a time: what a cache holds, or 128 MiB.
_SLAB = {"cpu": 1 << 17, "cuda": 1 << 24}

Sums = tuple[Tensor, Tensor, Tensor]


class Moments(NamedTuple):
    """Running statistics, one column per channel.

    minimum, maximum : float32 (channels,), +inf and −inf before the first finite site.
    total, squares : int64 (LIMBS, channels), exact sums of x and x² of each image.
    zeros, finite, nonfinite : int64 (channels,), sites of each kind.
    """

    minimum: Tensor
    maximum: Tensor
    total: Tensor
    squares: Tensor
    zeros: Tensor
    finite: Tensor
    nonfinite: Tensor


def to_limbs(x: Tensor) -> Tensor:
    """Split float64 (...) into int64 (LIMBS, ...), each below 2⁴⁰ in magnitude.

    Exact for finite |x| < 2²⁸⁰ down to multiples of 2⁻¹⁶⁰, which covers sums of squares of
    float32. 2²³ numbers may be added before a limb could overflow: :func:`carry` before that.
    """
    limbs = []
    for weight in WEIGHTS:
        limb = torch.trunc(x / weight)
        x = x - limb * weight
        limbs.append(limb.to(torch.int64))
    return torch.stack(limbs)


def from_limbs(limbs: Tensor) -> Tensor:
    """The float64 (...) that int64 (LIMBS, ...) add up to, rounded.

    It depends on the sum alone, not on how it is spread over the integers.
    """
    limbs = _carried(limbs)
    negative = limbs[0] < 0
    limbs = _carried(torch.where(negative, -limbs, limbs))
    total = torch.zeros_like(limbs[0], dtype=torch.float64)
    for weight, limb in zip(reversed(WEIGHTS), reversed(limbs.unbind(0)), strict=True):
        total = total + limb.to(torch.float64) * weight
    return torch.where(negative, -total, total)


def _carried(limbs: Tensor) -> Tensor:
    """The same sum with every integer but the first from 0 to 2⁴⁰ − 1."""
    parts = list(limbs.unbind(0))
    for place in range(LIMBS - 1, 0, -1):
        over = parts[place] >> _LIMB_BITS
        parts[place] = parts[place] - (over << _LIMB_BITS)
        parts[place - 1] = parts[place - 1] + over
    return torch.stack(parts)


def empty_moments(channels: int, device: torch.device | str) -> Moments:
    """Statistics of nothing yet."""
    ints = torch.zeros(channels, dtype=torch.int64, device=device)
    limbs = torch.zeros(LIMBS, channels, dtype=torch.int64, device=device)
    lowest = torch.full((channels,), -torch.inf, device=device)
    return Moments(-lowest, lowest, limbs, limbs.clone(), ints, ints.clone(), ints.clone())


def batch_moments(x: Tensor) -> tuple[Moments, Tensor | None]:
    """Statistics of a batch of activations.

    Parameters
    ----------
    x : Tensor, float32 (batch, channels, sites)

    Returns
    -------
    tuple of Moments and Tensor or None
        The statistics of the finite sites, and where x is finite, bool like x; None where the
        host knows that it is finite everywhere.
    """
    zero = torch.zeros(x.shape[1], dtype=torch.int64, device=x.device)
    # Asking the host is free on the CPU and spares it the masks; on CUDA it would stall. A
    # float64 sum of float32 values is finite exactly when all of them are.
    if x.device.type == "cpu":
        sums = _sums(x)
        if bool(sums[0].isfinite().all()):
            return _moments(x, x, sums, zero), None
    finite = torch.isfinite(x)
    nonfinite = (~finite).sum((0, 2))
    low = torch.where(finite, x, torch.inf)
    high = torch.where(finite, x, -torch.inf)
    return _moments(low, high, _sums(torch.where(finite, x, 0)), nonfinite), finite


def _moments(low: Tensor, high: Tensor, sums: Sums, nonfinite: Tensor) -> Moments:
    total, squares, nonzero = sums
    finite = low.shape[0] * low.shape[2] - nonfinite
    return Moments(
        low.amin((0, 2)) + 0.0,
        high.amax((0, 2)) + 0.0,
        to_limbs(total).sum(1),
        to_limbs(squares).sum(1),
        finite - nonzero,
        finite,
        nonfinite,
    )


def _sums(x: Tensor) -> Sums:
    """Sums of x and x², float64 (batch, channels), and how many are not 0, int64 (channels,)."""
    _, channels, sites = x.shape
    totals, squares = [], []
    nonzero = torch.zeros(channels, dtype=torch.int64, device=x.device)
    for part in x.split(max(1, _SLAB[x.device.type] // (channels * sites))):
        wide = part.to(torch.float64)
        totals.append(wide.sum(2))
        squares.append(wide.square_().sum(2))
        nonzero += part.ne(0).sum((0, 2), dtype=torch.int32)
    return torch.cat(totals), torch.cat(squares), nonzero


def add_moments(a: Moments, b: Moments) -> Moments:
    """Statistics of two disjoint sets of images: exactly associative and commutative."""
    return Moments(
        torch.minimum(a.minimum, b.minimum),
        torch.maximum(a.maximum, b.maximum),
        *(x + y for x, y in zip(a[2:], b[2:], strict=True)),
    )


def carry(moments: Moments) -> Moments:
    """The same statistics with room for 2²³ images more in every integer."""
    return moments._replace(total=_carried(moments.total), squares=_carried(moments.squares))


def summarise(moments: Moments) -> ActivationStats:
    """Mean, population variance and the rest on the CPU; NaN for a channel with no finite site."""
    minimum, maximum, total, squares, zeros, finite, nonfinite = (x.cpu() for x in moments)
    seen = finite > 0
    n = torch.where(seen, finite, 1).to(torch.float64)
    mean = from_limbs(total) / n
    variance = (from_limbs(squares) / n - mean.square()).clamp_min(0)
    return ActivationStats(
        minimum=torch.where(seen, minimum, torch.nan),
        maximum=torch.where(seen, maximum, torch.nan),
        mean=torch.where(seen, mean, torch.nan),
        variance=torch.where(seen, variance, torch.nan),
        sparsity=torch.where(seen, zeros / n, torch.nan),
        nonfinite=nonfinite,
        count=finite,
    )


def dead_channels(stats: ActivationStats) -> Tensor:
    """Channels that never change: bool (channels,), True where maximum = minimum or nothing finite.

    Such a channel has no top sites worth the name: every site ties.
    """
    return ~(stats.maximum > stats.minimum)
