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

from typing import NamedTuple

import torch
from torch import Tensor

from psi_engine.ops.random import hash_keys

GRID = 2.0**-24
"""Unit rows, cosines and similarities are multiples of this; float32 holds them exactly."""

_AT_ONCE = 1 << 20
# Numbers normalised together: float64 copies of them stay in the cache.


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


def quantise(x: Tensor) -> Tensor:
    """Round to the nearest multiple of 2⁻²⁴ and clamp to [−1, 1]; float32, same shape."""
    return ((x / GRID).round_() * GRID).clamp_(-1, 1).to(torch.float32)


def unit_rows(x: Tensor) -> UnitRows:
    """Rows of any finite size scaled to length one and put on the grid.

    Parameters
    ----------
    x : Tensor, floating (..., dim)
        Never modified. Divided by its largest coordinate first, so that neither 1e-30 nor 1e200
        under- or overflows.
    """
    flat = x.reshape(-1, x.shape[-1])
    parts = [_unit(part) for part in flat.split(max(1, _AT_ONCE // max(1, x.shape[-1])))]
    if not parts:
        parts = [_unit(flat)]
    rows, finite, nonzero = (torch.cat(field) for field in zip(*parts, strict=True))
    return UnitRows(
        rows.reshape(x.shape), finite.reshape(x.shape[:-1]), nonzero.reshape(x.shape[:-1])
    )


def _unit(x: Tensor) -> UnitRows:
    y = x.to(torch.float64)
    finite = torch.isfinite(y).all(-1)
    y = torch.where(finite[..., None], y, 0.0)
    largest = y.abs().amax(-1, keepdim=True)
    nonzero = finite & (largest[..., 0] > 0)
    y = y / torch.where(largest > 0, largest, 1.0)
    length = fold_sum(y * y).sqrt_()
    y = y / torch.where(nonzero, length, 1.0)[..., None]
    return UnitRows(quantise(y), finite, nonzero)


def cosines(a: Tensor, b: Tensor) -> Tensor:
    """All cosines between two sets of grid unit rows: float32 (..., a, b), on the grid.

    Parameters
    ----------
    a : Tensor, float32 (..., a, dim)
    b : Tensor, float32 (..., b, dim)
    """
    return quantise(a.to(torch.float64) @ b.to(torch.float64).mT)


def gram(rows: Tensor) -> Tensor:
    """Cosines within each set of grid unit rows: float32 (..., n, n), symmetric, diagonal 1."""
    x = rows.to(torch.float64)
    g = quantise(x @ x.mT)
    g.diagonal(dim1=-2, dim2=-1).fill_(1.0)
    return g


def row_keys(rows: Tensor) -> Tensor:
    """A 64-bit hash of each grid row: int64 (...); equal rows have equal keys.

    A multilinear hash (Carter and Wegman 1979) of the integer coordinates modulo 2⁶⁴, mixed;
    integer sums wrap and so do not depend on their order.
    """
    weights = hash_keys(torch.arange(rows.shape[-1], device=rows.device), 1) | 1
    values = (rows.to(torch.float64) * 2.0**24).to(torch.int64)
    return hash_keys((values * weights).sum(-1))


def set_keys(keys: Tensor, mask: Tensor) -> Tensor:
    """A 64-bit hash of each channel from its row keys (channels, patches) and mask: (channels,)."""
    weights = hash_keys(torch.arange(keys.shape[-1], device=keys.device), 2) | 1
    return hash_keys((torch.where(mask, keys, 0) * weights).sum(-1), mask.sum(-1))
