"""S-nulls ``rotation-samples``, ``rotation-tangent`` and ``rotation-shared``.

Langsrud's rotation test (Stat. Comput. 15, 2005): with Q orthogonal and Q1 = 1, the rows of QX
have the same mean and covariance as those of X and no other structure. Up to K = d everything
happens on Gram matrices, G' = QGQᵀ: one bank of Haar matrices serves all channels; each channel
permutes its patches first, and Q·P is Haar again. Beyond, the rows themselves are rotated, see
:mod:`psi_engine.nulls.rotated_rows`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from psi_engine.nulls.base import Batch, Call
from psi_engine.nulls.draws import rotations_about_ones
from psi_engine.nulls.rotated_rows import rotated_scores
from psi_engine.ops.exact import fold_sum
from psi_engine.ops.random import permutations
from psi_engine.ops.rotated_grams import (
    PRODUCT_GRID,
    ROTATION_GRID,
    TINY,
    on_grid,
)
from psi_engine.statistics import NullSummary, summarise

LEAST_ALIGNMENT = 0.1
"""Below this cosine with the mean direction the tangent plane's coordinates blow up."""


def rotation_samples(batch: Batch, call: Call) -> NullSummary:
    """Compare S with S of rows rotated in sample space and normalised again.

    Exact for Gaussian rows rotated before normalisation. On unit rows it rejects one Gaussian
    mode too often: at 5 %, with 50 patches of 8 dimensions, 7 % where the mode is round and 55 %
    where it is oblong.
    """
    if batch.n > batch.units.shape[-1]:
        return summarise(batch.s, rotated_scores(batch, call, batch.units.to(torch.float64)))
    return _compare(batch, call, batch.grams.to(torch.float64), 0.0)


def rotation_tangent(batch: Batch, call: Call) -> NullSummary:
    """Compare S with S of rows rotated in the tangent plane at their mean direction.

    Notes
    -----
    With a_i = μ·z_i the tangent coordinates are y_i = z_i/a_i − μ, so y_i·y_j = G_ij/(a_i a_j) − 1,
    and z' ∝ μ + y' gives cosines (1 + y'_i·y'_j)/√((1 + |y'_i|²)(1 + |y'_j|²)). A channel with a
    patch whose a_i is below 0.1 has no usable tangent plane: its moments are NaN.
    """
    grams = batch.grams.to(torch.float64)
    sums = fold_sum(grams)
    alignment = sums / fold_sum(sums).clamp(min=TINY).sqrt()[:, None]
    refused = (alignment < LEAST_ALIGNMENT).any(-1)
    safe = torch.where(refused[:, None], 1.0, alignment)
    if batch.n > batch.units.shape[-1]:
        # z/a = μ + y: its mean and the rest, which is rotated, are those of the tangent plane
        rows = batch.units.to(torch.float64) / safe[:, :, None]
        summary = summarise(batch.s, rotated_scores(batch, call, rows))
    else:
        tangent = grams / (safe[:, :, None] * safe[:, None, :]) - 1.0
        summary = _compare(batch, call, tangent, 1.0)
    mean, std, p, quantiles = summary
    mean, std, p = (x.masked_fill(refused, torch.nan) for x in (mean, std, p))
    return NullSummary(mean, std, p, quantiles.masked_fill(refused[:, None], torch.nan))


def rotation_shared(batch: Batch, call: Call) -> NullSummary:
    """One rotation for the whole set, the paper's words: every cosine stays, so the null is S.

    Computed by theorem, not by drawing: a rotation of all rows leaves the Gram matrix unchanged.
    """
    call.note(
        "s_null 'rotation-shared' is degenerate: rotating all patches together changes no cosine, "
        "so S equals its null and Ŝ is 0.5 for every channel; use 'pool' or 'neighborhood'"
    )
    return summarise(batch.s, batch.s[:, None])._replace(std=torch.zeros_like(batch.s))


def _compare(batch: Batch, call: Call, products: Tensor, shift: float) -> NullSummary:
    """Rotate inner products (channels, n, n), add the shift, normalise to Gram matrices, score."""
    n, channels = batch.n, len(batch.ids)
    draws = torch.empty(channels, call.config.replicates, dtype=torch.float64, device=call.device)
    norm = fold_sum(fold_sum(products * products)).sqrt()
    scale = torch.ldexp(torch.ones_like(norm), torch.frexp(norm).exponent)
    shuffled = _permute(
        products / scale[:, None, None],
        permutations(call.keys("null.s.samples", batch.ids), n),
    )
    shuffled = on_grid(shuffled, PRODUCT_GRID)
    each = n * n * 64
    parts = call.replicates().split(min(call.chunk(each), 256))
    for which, part in enumerate(parts):
        bank = call.latest(
            "rotations",
            (n, len(parts), which),
            lambda part=part: on_grid(  # type: ignore[misc]
                rotations_about_ones(call.keys("null.s.bank", n, part), n), ROTATION_GRID
            ),
        )
        keys = call.keys("null.s.solve", batch.ids[:, None], part)
        at = which * len(parts[0])
        draws[:, at : at + len(part)] = call.rotated_separability(
            bank, shuffled, scale, shift, keys
        )
    return summarise(batch.s, draws)


def _permute(products: Tensor, order: Tensor) -> Tensor:
    n = order.shape[-1]
    rows = products.gather(1, order[:, :, None].expand(-1, n, n))
    return rows.gather(2, order[:, None, :].expand(-1, n, n))
