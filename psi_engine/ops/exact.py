"""Sums whose bits depend on the numbers alone: not on batch shape, chunk, thread or device.

Floating-point sums change with their order, and libraries choose the order by shape. Two devices
keep a channel's bits the same whatever travels beside it:

* :func:`fold_sum` adds in one fixed tree of elementwise additions;
* unit rows are rounded to multiples of 2⁻²⁴ (:func:`unit_rows`). Their products are multiples of
  2⁻⁴⁸ and every partial sum of a cosine stays below 1 by Cauchy–Schwarz, so a float64 matrix
  product of such rows is *exact* in any order, with fused multiply-adds or without, on any
  device. The rounding moves a cosine by about 2·10⁻⁸, less than float32 input does.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from psi_engine.ops.random import hash_keys, uniform

GRID = 2.0**-24
"""Unit rows, cosines and similarities are multiples of this; float32 holds them exactly."""

_AT_ONCE = 1 << 18
# Numbers worked on together, see :func:`near`.
_CONVERTED = 1 << 24
# Numbers that loops take at once: halves are widened first.
_SMALL = 2.0**-200


class UnitRows(NamedTuple):
    """rows : float32 (..., dim), unit length on the grid, zero where not usable.

    finite : bool (...), no NaN or infinity. nonzero : bool (...), finite with a direction.
    """

    rows: Tensor
    finite: Tensor
    nonzero: Tensor


def fold_sum(x: Tensor) -> Tensor:
    """Sum over the last axis by halving it: the same additions whatever the other axes are."""
    size = x.shape[-1]
    if size == 0:
        return x.new_zeros(x.shape[:-1])
    while size > 1:
        half = size // 2
        rest = size - half
        folded = x[..., :half] + x[..., rest:size]
        x = torch.cat([folded, x[..., half:rest]], dim=-1) if rest > half else folded
        size = rest
    return x[..., 0]


def fold_mean(x: Tensor) -> Tensor:
    """Mean over the last axis; see :func:`fold_sum`."""
    return fold_sum(x) / x.shape[-1]


def near(x: Tensor, numbers_each: int) -> int:
    """How many items to convert to float64 together, of so many numbers each.

    On a CPU what a cache holds: large temporaries cost more in page faults than in arithmetic.
    """
    at_once = _AT_ONCE if x.device.type == "cpu" else _AT_ONCE << 8
    return max(1, at_once // max(1, numbers_each))


def quantise(x: Tensor) -> Tensor:
    """Round to the nearest multiple of 2⁻²⁴ and clamp to [−1, 1]; float32, same shape."""
    return (x * 2.0**24).round_().to(torch.float32).mul_(GRID).clamp_(-1, 1)


def unit_rows(x: Tensor) -> UnitRows:
    """Rows of any finite size scaled to length one and put on the grid.

    Parameters
    ----------
    x : Tensor, floating (..., dim)
        Never modified. Divided by its largest coordinate first, so that neither 1e-30 nor 1e200
        under- or overflows.
    """
    flat = x.detach().reshape(-1, x.shape[-1])
    on_cpu = x.device.type == "cpu"
    unit, numbers = (_unit_loops, _CONVERTED) if on_cpu else (_unit, _AT_ONCE << 8)
    parts = [unit(part) for part in flat.split(max(1, numbers // max(1, x.shape[-1])))]
    rows, finite, nonzero = (torch.cat(field) for field in zip(*parts, strict=True))
    return UnitRows(
        rows.reshape(x.shape), finite.reshape(x.shape[:-1]), nonzero.reshape(x.shape[:-1])
    )


def has_direction(x: Tensor) -> Tensor:
    """Which rows (..., dim) are finite and not zero, bool (...): those that unit_rows can use."""
    largest = _largest(x)[..., 0]
    return torch.isfinite(largest) & (largest > 0)


def _largest(x: Tensor) -> Tensor:
    if x.element_size() == 1:  # nothing is computed in 8 bits
        x = x.to(torch.float32)
    low, high = torch.aminmax(x, dim=-1, keepdim=True)
    return torch.maximum(-low, high).to(torch.float64)


def _unit_loops(x: Tensor) -> UnitRows:
    from psi_engine.ops import _numba_exact

    wide = x if x.dtype == torch.float64 else x.to(torch.float32)
    return UnitRows(*_numba_exact.unit_rows(wide, GRID, _SMALL))


def _unit(x: Tensor) -> UnitRows:
    largest = _largest(x)
    finite = torch.isfinite(largest)
    nonzero = finite & (largest > 0)
    y = x.to(torch.float64)
    if not bool(finite.all()):
        y = torch.where(finite, y, 0.0)
    usual = nonzero & (largest > _SMALL) & (largest < 1 / _SMALL)
    if not bool((usual | ~nonzero).all()):
        # a power of two changes no bit of the result, only keeps the squares in range
        y = torch.ldexp(y, torch.where(usual, 0, -torch.frexp(largest).exponent))
    length = fold_sum(y * y).sqrt_()[..., None]
    y = y / torch.where(nonzero, length, 1.0)
    return UnitRows(quantise(y), finite[..., 0], nonzero[..., 0])


def cosines(a: Tensor, b: Tensor) -> Tensor:
    """All cosines between two sets of grid unit rows: float32 (..., a, b), on the grid.

    Parameters
    ----------
    a : Tensor, float32 (..., a, dim)
    b : Tensor, float32 (..., b, dim)
    """
    return quantise(a.to(torch.float64) @ b.to(torch.float64).mT)


def gram(rows: Tensor) -> Tensor:
    """Cosines within sets of grid unit rows (sets, n, dim): float32 (sets, n, n), diagonal 1."""
    sets, n, dim = rows.shape
    out = torch.empty(sets, n, n, dtype=torch.float32, device=rows.device)
    step = near(rows, n * dim)
    for start in range(0, sets, step):
        x = rows[start : start + step].to(torch.float64)
        out[start : start + step] = quantise(x @ x.mT)
    out.diagonal(dim1=-2, dim2=-1).fill_(1.0)
    return out


def clarity_of(grams: Tensor) -> Tensor:
    """Mean cosine of two different patches: float64 (...), exact sums of the grid's multiples."""
    n = grams.shape[-1]
    total = fold_sum(fold_sum(grams.to(torch.float64)))
    return (total - n) / (n * (n - 1))


def row_keys(rows: Tensor) -> Tensor:
    """A 64-bit hash of each grid row: int64 (...); equal rows have equal keys.

    Multilinear hashes (Carter and Wegman 1979) of the integer coordinates, three independent
    ones, mixed. The weights are small enough for their float64 sums to be exact: Σ|v| ≤ √dim
    for a unit row.
    """
    dim = rows.shape[-1]
    bits = 28 - math.ceil(math.log2(dim) / 2)
    place = torch.arange(3 * dim, device=rows.device).reshape(dim, 3)
    weights = (uniform(place, 1) * 2.0**bits).floor()
    flat = rows.reshape(-1, dim)
    sums = torch.cat([part.to(torch.float64) @ weights for part in flat.split(near(rows, dim))])
    one, two, three = (sums * 2.0**24).to(torch.int64).unbind(-1)
    return hash_keys(one, two, three).reshape(rows.shape[:-1])


def set_keys(keys: Tensor, mask: Tensor) -> Tensor:
    """A 64-bit hash of each channel from its row keys (channels, patches) and mask: (channels,)."""
    weights = hash_keys(torch.arange(keys.shape[-1], device=keys.device), 2) | 1
    return hash_keys((torch.where(mask, keys, 0) * weights).sum(-1), mask.sum(-1))
