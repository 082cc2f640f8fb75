"""Gram matrices on a fixed-point grid, so that every sum over them is exact.

A floating-point sum depends on the order of its terms, and the order depends on the batch size,
the thread count, the memory alignment and the library. Rounding the cosines to multiples of
2⁻³¹ (4.7e-10, finer than float32 resolves) makes every sum of up to 1024² of them exact in
float64: the cluster sums H'GH have the same bits on every backend, in every batch, in any order.
What remains are single IEEE operations (a square root, a division), which round alike everywhere.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from psi_engine.errors import InputError

BOUND = 2.0
"""Entries beyond this cannot be cosines of unit rows, not even rounded ones."""

FINE = 2.0**40
"""Grid of derived quantities (silhouettes, square roots) that are summed over patches."""


def fraction_bits(patches: int) -> int:
    """Bits after the point that keep sums of ``patches**2`` entries below 2 exact in float64."""
    return 31 - 2 * max(0, math.ceil(math.log2(max(patches, 1) / 1024)))


def to_grid(grams: Tensor, mask: Tensor | None = None) -> Tensor:
    """Symmetrise Gram matrices and round them to the grid.

    Parameters
    ----------
    grams : Tensor, float (n, patches, patches)
        Cosines: Gram matrices of unit rows.
    mask : Tensor, bool (n, patches), optional
        False rows and columns become zero, whatever they held.

    Returns
    -------
    Tensor
        float64 (n, patches, patches), exactly symmetric, multiples of 2⁻³¹.

    Raises
    ------
    InputError
        A valid entry is NaN or larger than 2 in size.
    """
    grid = grams.to(torch.float64)
    grid = (grid + grid.mT) * 0.5
    if mask is not None:
        both = mask.unsqueeze(-1) & mask.unsqueeze(-2)
        grid = torch.where(both, grid, 0.0)
    if grid.numel() and not bool((grid.abs() <= BOUND).all()):
        raise bad_gram()
    scale = 2.0 ** fraction_bits(grams.shape[-1])
    return (grid * scale).round_().mul_(1 / scale)


def fine(values: Tensor) -> Tensor:
    """Round to multiples of 2⁻⁴⁰, so that sums over patches are exact."""
    return (values * FINE).round() / FINE


def bad_gram() -> InputError:
    """Build the error for Gram matrices that are not cosines."""
    return InputError(
        "grams hold NaN, infinite or too large entries",
        expected="cosines of unit rows, between -1 and 1",
        fix="normalise the embeddings and leave broken channels out (or mask their patches)",
    )
