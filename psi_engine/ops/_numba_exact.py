"""Unit rows of :mod:`psi_engine.ops.exact` as loops for numba; the same steps, the same bits."""
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from psi_engine.ops._jit import compiled, in_threads

_BITS = {torch.float32: torch.int32, torch.float64: torch.int64}
_LEAST = 256  # rows that are worth a thread


def unit_rows(x: Tensor, grid: float, small: float) -> tuple[Tensor, Tensor, Tensor]:
    """See :func:`psi_engine.ops.exact.unit_rows`: x (n, dim) on the CPU, float32 or float64."""
    x = x.contiguous()
    n, dim = x.shape
    rows = torch.empty(n, dim)
    finite, nonzero = (torch.empty(n, dtype=torch.bool) for _ in range(2))
    arrays = (a.numpy() for a in (x, x.view(_BITS[x.dtype]), rows, finite, nonzero))
    in_threads(_range, n, *arrays, grid, small, least=_LEAST)
    return rows, finite, nonzero


@compiled
def _range(start, stop, x, bits, rows, finite, nonzero, grid, small):
    dim = x.shape[1]
    y, squares = np.empty(dim), np.empty(dim)
    for n in range(start, stop):
        largest = _largest(x[n], bits[n])
        finite[n] = largest < np.inf  # false for NaN
        nonzero[n] = finite[n] and largest > 0
        if not finite[n]:
            rows[n] = 0.0
            continue
        _widen(x[n], y)
        if nonzero[n] and not small < largest < 1 / small:
            # a power of two changes no bit of the result, only keeps the squares in range
            exponent = math.frexp(largest)[1]
            for j in range(dim):
                y[j] = math.ldexp(y[j], -exponent)
        length = math.sqrt(_folded_squares(y, squares)) if nonzero[n] else 1.0
        _round(y, length, rows[n], grid)
    return True


@compiled
def _largest(row, bits):
    """Greatest magnitude: without their sign, floats are ordered as their bits are."""
    highest = np.int64(0)
    mask = np.int64(0x7FFFFFFF) if bits.itemsize == 4 else np.int64(0x7FFFFFFFFFFFFFFF)
    for j in range(bits.shape[0]):
        highest = max(highest, np.int64(bits[j]) & mask)
    for j in range(bits.shape[0]):
        if np.int64(bits[j]) & mask == highest:
            return abs(np.float64(row[j]))
    return 0.0


@compiled
def _widen(row, y):
    for j in range(row.shape[0]):
        y[j] = row[j]


@compiled
def _folded_squares(y, squares):
    """Sum of squares in the order of :func:`psi_engine.ops.exact.fold_sum`."""
    size = y.shape[0]
    for j in range(size):
        squares[j] = y[j] * y[j]
    while size > 1:
        half = size // 2
        rest = size - half
        for j in range(half):
            squares[j] += squares[rest + j]
        size = rest
    return squares[0]


@compiled
def _round(y, length, row, grid):
    steps = 1 / grid
    for j in range(y.shape[0]):
        value = np.rint(y[j] / length * steps) * grid
        row[j] = min(max(value, -1.0), 1.0)
