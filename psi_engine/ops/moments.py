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

_SLAB = 1 << 24  # elements squared at a time in float64: 128 MiB of temporaries


class Moments(NamedTuple):
    """Running statistics, one column per channel.

    minimum, maximum : float32 (channels,), +inf and −inf before the first finite site.
    total, squares : int64 (LIMBS, channels), exact sums of x and x² of each image.
    zeros, count, nonfinite : int64 (channels,).
    """

    minimum: Tensor
    maximum: Tensor
    total: Tensor
    squares: Tensor
    zeros: Tensor
    count: Tensor
    nonfinite: Tensor


def to_limbs(x: Tensor) -> Tensor:
    """Split float64 (...) into int64 (LIMBS, ...), each below 2⁴⁰ in magnitude.

    Exact for finite |x| < 2²⁸⁰ down to multiples of 2⁻¹⁶⁰, which covers sums of squares of
    float32. 2²³ numbers may be added before a limb could overflow.
    """
    limbs = []
    for place in _PLACES:
        weight = 2.0 ** (_LIMB_BITS * place)
        limb = torch.trunc(x / weight)
        x = x - limb * weight
        limbs.append(limb.to(torch.int64))
    return torch.stack(limbs)


def from_limbs(limbs: Tensor) -> Tensor:
    """The float64 (...) that int64 (LIMBS, ...) add up to, rounded."""
    total = torch.zeros_like(limbs[0], dtype=torch.float64)
    for place, limb in zip(reversed(_PLACES), reversed(limbs.unbind(0)), strict=True):
        total = total + limb.to(torch.float64) * 2.0 ** (_LIMB_BITS * place)
    return total


def empty_moments(channels: int, device: torch.device | str) -> Moments:
    """Statistics of nothing yet."""
    ints = torch.zeros(channels, dtype=torch.int64, device=device)
    limbs = torch.zeros(LIMBS, channels, dtype=torch.int64, device=device)
    lowest = torch.full((channels,), -torch.inf, device=device)
    return Moments(-lowest, lowest, limbs, limbs.clone(), ints, ints.clone(), ints.clone())


def batch_moments(x: Tensor, finite: Tensor | None) -> Moments:
    """Statistics of a batch of activations.

    Parameters
    ----------
    x : Tensor, float32 (batch, channels, sites)
    finite : Tensor, bool (batch, channels, sites), or None
        Where x is finite; None = everywhere.
    """
    batch, channels, sites = x.shape
    count = torch.full((channels,), batch * sites, dtype=torch.int64, device=x.device)
    nonfinite = torch.zeros_like(count)
    low = high = y = x
    if finite is not None:
        nonfinite = (~finite).sum((0, 2))
        count = count - nonfinite
        low = torch.where(finite, x, torch.inf)
        high = torch.where(finite, x, -torch.inf)
        y = torch.where(finite, x, 0)
    zeros = batch * sites - torch.count_nonzero(y, dim=(0, 2)) - nonfinite
    rows = max(1, _SLAB // (channels * sites))
    squares = torch.cat([part.double().square_().sum(2) for part in y.split(rows)])
    return Moments(
        low.amin((0, 2)) + 0.0,
        high.amax((0, 2)) + 0.0,
        to_limbs(y.sum(2, dtype=torch.float64)).sum(1),
        to_limbs(squares).sum(1),
        zeros,
        count,
        nonfinite,
    )


def add_moments(a: Moments, b: Moments) -> Moments:
    """Statistics of two disjoint sets of images: exactly associative and commutative."""
    return Moments(
        torch.minimum(a.minimum, b.minimum),
        torch.maximum(a.maximum, b.maximum),
        *(x + y for x, y in zip(a[2:], b[2:], strict=True)),
    )


def summarise(moments: Moments) -> ActivationStats:
    """Mean, population variance and the rest on the CPU; NaN for a channel with no finite site."""
    minimum, maximum, total, squares, zeros, count, nonfinite = (x.cpu() for x in moments)
    seen = count > 0
    n = torch.where(seen, count, 1).to(torch.float64)
    mean = from_limbs(total) / n
    variance = (from_limbs(squares) / n - mean.square()).clamp_min(0)
    return ActivationStats(
        minimum=torch.where(seen, minimum, torch.nan),
        maximum=torch.where(seen, maximum, torch.nan),
        mean=torch.where(seen, mean, torch.nan),
        variance=torch.where(seen, variance, torch.nan),
        sparsity=torch.where(seen, zeros / n, torch.nan),
        nonfinite=nonfinite,
        count=count,
    )


def dead_channels(stats: ActivationStats) -> Tensor:
    """Channels that never change: bool (channels,), True where maximum = minimum or nothing finite.

    Such a channel has no top sites worth the name: every site ties.
    """
    return ~(stats.maximum > stats.minimum)
