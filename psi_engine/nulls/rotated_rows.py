"""Rotations in sample space for channels with more patches than dimensions, K > d.

Langsrud's rotation keeps the mean and the covariance of the rows. With the centred rows written
as U·R, U having d orthonormal columns orthogonal to 1, a Haar matrix Q with Q1 = 1 turns U into a
uniformly random frame QU of the same kind. So a replicate is mean + W·R with W such a frame:
K·d numbers and K·d² operations where Q itself and QGQᵀ would take K² and K³. One bank of frames
serves all channels; each permutes and flips the coordinates of its R first, which leaves W Haar.

The solver stays in Gram space even here: a move costs it K·k there and K·d with the rows.
"""

from __future__ import annotations

import torch
from torch import Tensor

from psi_engine.nulls.base import Batch, Call
from psi_engine.nulls.draws import gaussian_on_cpu
from psi_engine.ops.exact import fold_mean, fold_sum, gram, unit_rows
from psi_engine.ops.random import permutations, uniform

_FRAME_GRID, _FACTOR_GRID = 2.0**-25, 2.0**-27
# With rows of W of length one and ‖R‖ below one, partial sums of their products are multiples of
# 2⁻⁵² below 1: exact in float64 in any order.
_TINY = 2.0**-60


def rotated_scores(batch: Batch, call: Call, rows: Tensor) -> Tensor:
    """S of each channel's rows, rotated and normalised again.

    Parameters
    ----------
    rows : Tensor, float64 (channels, n, dim)
        More patches n than dimensions.

    Returns
    -------
    Tensor
        float64 (channels, replicates).
    """
    channels, n, dim = rows.shape
    draws = torch.empty(channels, call.config.replicates, dtype=torch.float64, device=call.device)
    mean = fold_mean(rows.mT)
    factor = _factor(rows - mean[:, None])
    scale = _power_of_two(factor)
    factor = _shuffle(factor / scale, call.keys("null.s.frame", batch.ids))
    factor = (factor / _FACTOR_GRID).round_().mul_(_FACTOR_GRID)
    bank = n * dim * 48
    each = n * (dim * 40 + n * 16)
    parts = call.replicates().split(call.chunk(2 * bank))
    for turn, part in enumerate(parts):
        held = call.latest(
            "frames",
            (n, dim, len(parts), turn),
            lambda part=part: _frames(n, dim, part, call),  # type: ignore[misc]
        )
        step = max(1, call.chunk(2 * each) // len(part))
        few = min(len(part), call.chunk(2 * each))
        for start in range(0, channels, step):
            some = slice(start, start + step)
            for at in range(0, len(part), few):
                frames, which = held[at : at + few], part[at : at + few]
                grams = _rotate(frames, factor[some], scale[some], mean[some])
                keys = call.keys("null.s.solve", batch.ids[some, None], which)
                found = call.separability(grams.flatten(0, 1), keys.flatten())
                draws[some, which] = found.score.unflatten(0, keys.shape)
    return draws


def _frames(n: int, dim: int, replicates: Tensor, call: Call) -> Tensor:
    """Uniform frames of dim columns orthogonal to 1, on the grid: float64 (m, n, dim).

    The Q factor of a Gaussian matrix without its column means, with the signs of R's diagonal
    moved over (Mezzadri 2007). LAPACK factors each matrix by itself on the CPU.
    """
    keys = call.keys("null.s.frames", n, dim, replicates)
    out = torch.empty(len(keys), n, dim, dtype=torch.float64, device=call.device)
    step = call.near_chunk(n * dim * 64)
    for start in range(0, len(keys), step):
        gaussian = gaussian_on_cpu(keys[start : start + step], dim, n)
        centred = gaussian - fold_mean(gaussian)[..., None]
        q, r = torch.linalg.qr(centred.mT)
        q = q * torch.where(r.diagonal(dim1=-2, dim2=-1) < 0, -1.0, 1.0)[:, None, :]
        out[start : start + step] = (q / _FRAME_GRID).round_().mul_(_FRAME_GRID)
    return out


def _factor(centred: Tensor) -> Tensor:
    """R with RᵀR the scatter of the rows: float64 (channels, dim, dim)."""
    return torch.linalg.qr(centred.cpu(), mode="r").R.to(centred.device)


def _power_of_two(factor: Tensor) -> Tensor:
    """What brings each factor's Frobenius norm below one, exactly: (channels, 1, 1)."""
    norm = fold_sum(fold_sum(factor * factor)).sqrt().clamp(min=_TINY)
    return torch.ldexp(torch.ones_like(norm), torch.frexp(norm).exponent)[:, None, None]


def _shuffle(factor: Tensor, keys: Tensor) -> Tensor:
    """Permute and flip the coordinates of each channel's factor."""
    dim = factor.shape[1]
    order = permutations(keys, dim)
    place = torch.arange(dim, device=factor.device)
    flip = torch.where(uniform(keys[:, None], dim, place) < 0.5, -1.0, 1.0)
    return factor.gather(1, order[:, :, None].expand_as(factor)) * flip[:, :, None]


def _rotate(frames: Tensor, factor: Tensor, scale: Tensor, mean: Tensor) -> Tensor:
    """Gram matrices of mean + W·R, normalised: float32 (channels, m, n, n)."""
    m, n, dim = frames.shape
    wide = factor.movedim(0, 1).flatten(1)  # (dim, channels · dim)
    products = (frames.flatten(0, 1) @ wide).reshape(m, n, -1, dim).permute(2, 0, 1, 3)
    rows = unit_rows(products * scale[:, None] + mean[:, None, None]).rows
    return gram(rows.flatten(0, 1)).unflatten(0, (-1, m))
