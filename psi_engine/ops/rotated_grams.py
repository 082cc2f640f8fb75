"""Gram matrices of rows that were rotated in sample space and normalised again: D⁻½ Q P Qᵀ D⁻½.

P holds the inner products of some rows, Q rotates their order, and D, the diagonal of QPQᵀ,
brings the rotated rows back to length one. Every Q is applied to every P.
"""

from __future__ import annotations

import torch
from torch import Tensor

from psi_engine.config import Backend
from psi_engine.errors import InputError
from psi_engine.ops.backend import resolve_backend
from psi_engine.ops.exact import near, quantise

ROTATION_GRID, PRODUCT_GRID = 2.0**-25, 2.0**-27
# Grids of the matrices that are multiplied: with norms below 1 (Frobenius for P, of a row for Q),
# products and partial sums are multiples of 2⁻⁵² below 2, exact in float64 in any order.
TINY = 2.0**-30
"""Squared lengths below this are rounding."""


def on_grid(x: Tensor, grid: float) -> Tensor:
    """Round to the nearest multiple of a power of two; float64, same shape."""
    return (x * (1 / grid)).round_().mul_(grid)


def rotated_grams(
    rotations: Tensor,
    products: Tensor,
    scale: Tensor,
    shift: float,
    *,
    backend: Backend = "auto",
) -> Tensor:
    """Cosines of the rows of each channel under each rotation.

    Parameters
    ----------
    rotations : Tensor, float64 (m, n, n)
        Orthogonal matrices, rounded to ``ROTATION_GRID``.
    products : Tensor, float64 (channels, n, n)
        Inner products of each channel's rows over its scale, symmetric, of Frobenius norm below
        one, rounded to ``PRODUCT_GRID``.
    scale : Tensor, float64 (channels,)
        Powers of two.
    shift : float
        Added to every rotated inner product before rows are normalised: 1 where the products are
        those of a tangent plane, 0 elsewhere.
    backend : {"auto", "torch", "numba", "cuda"}

    Returns
    -------
    Tensor
        float32 (channels, m, n, n), on the grid of :mod:`psi_engine.ops.exact`, diagonal 1. The
        same bits from every backend and in every batch.

    Raises
    ------
    InputError
        The shapes do not fit each other.
    """
    check_rotations(rotations, products, scale)
    m, n = rotations.shape[:2]
    channels = len(products)
    out = torch.empty(channels, m, n, n, dtype=torch.float32, device=products.device)
    finish = normalised
    if resolve_backend(backend, products) == "numba":
        from psi_engine.ops import _numba_rotated_grams

        finish = _numba_rotated_grams.normalised
    at_once = near(products, n * n)
    few = max(1, min(m, at_once))
    some = max(1, at_once // few)
    for start in range(0, channels, some):
        here = slice(start, start + some)
        wide = products[here].movedim(0, 1).flatten(1)  # (n, channels · n)
        for at in range(0, m, few):
            turns = rotations[at : at + few]
            left = on_grid(turns.flatten(0, 1) @ wide, PRODUCT_GRID).reshape(len(turns), -1, n)
            both = (left @ turns.mT).reshape(len(turns), n, -1, n)
            finish(both, scale[here], shift, out[here, at : at + few])
    return out


def check_rotations(rotations: Tensor, products: Tensor, scale: Tensor) -> None:
    """Refuse rotations, products and scales of wrong dtypes or shapes."""
    m, n = rotations.shape[0], rotations.shape[-1]
    channels = len(products)
    if rotations.shape != (m, n, n) or products.shape != (channels, n, n):
        raise InputError(
            "rotations and products do not fit each other",
            got=f"{tuple(rotations.shape)} and {tuple(products.shape)}",
            expected="(m, n, n) and (channels, n, n)",
        )
    if scale.shape != (channels,):
        raise InputError("scale does not fit products", got=tuple(scale.shape), expected=channels)
    dtypes = [x.dtype for x in (rotations, products, scale)]
    if any(dtype != torch.float64 for dtype in dtypes):
        raise InputError(
            "rotations, products and scale are not all float64",
            got=", ".join(str(dtype) for dtype in dtypes),
        )


def normalised(products: Tensor, scale: Tensor, shift: float, out: Tensor) -> None:
    """Scale and shift inner products (m, n, channels, n), write cosines (channels, m, n, n)."""
    grams = products.permute(2, 0, 1, 3) * scale[:, None, None, None] + shift
    length = grams.diagonal(dim1=-2, dim2=-1).clamp(min=TINY).sqrt()
    out.copy_(quantise(grams / (length[..., :, None] * length[..., None, :])))
    out.diagonal(dim1=-2, dim2=-1).fill_(1.0)
