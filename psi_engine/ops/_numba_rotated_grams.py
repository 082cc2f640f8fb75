"""The passes after the products of :mod:`psi_engine.ops.rotated_grams` in one loop for numba.

The products themselves are BLAS's: compiled loops take five times as long.
"""
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import numpy as np
from torch import Tensor

from psi_engine.ops._jit import compiled, in_threads
from psi_engine.ops.exact import GRID
from psi_engine.ops.rotated_grams import TINY


def normalised(products: Tensor, scale: Tensor, shift: float, out: Tensor) -> None:
    """See :func:`psi_engine.ops.rotated_grams.normalised`."""
    in_threads(_range, len(scale), products.numpy(), scale.numpy(), shift, out.numpy())


@compiled
def _range(start, stop, products, scale, shift, out):
    m, n = products.shape[:2]
    lengths = np.empty(n)
    for r in range(m):
        for c in range(start, stop):
            for i in range(n):
                square = products[r, i, c, i] * scale[c] + shift
                lengths[i] = np.sqrt(square if square > TINY else TINY)
            for i in range(n):
                cosines(products[r, i, c], scale[c], shift, lengths[i], lengths, out[c, r, i])
                out[c, r, i, i] = 1.0
    return True


@compiled
def cosines(row, scale, shift, length, lengths, out):
    """Inner products to cosines, on the grid of unit rows."""
    for j in range(out.shape[0]):
        value = np.rint((row[j] * scale + shift) / (length * lengths[j]) * (1.0 / GRID)) * GRID
        value = value if value < 1.0 else 1.0
        out[j] = value if value > -1.0 else -1.0
