"""Patches of a channel as rows: lengths, means and cosines, in float64."""

from __future__ import annotations

import torch
from torch import Tensor

from psi_engine.errors import InputError
from psi_engine.ops.exact import fold_mean, fold_sum, unit_rows

_NUMBERS = 1 << 22
_MOST = 64


def at_once(patches: int, dim: int) -> int:
    """How many channels to work on together: in float64 a few copies of each are held."""
    return max(1, min(_MOST, _NUMBERS // (patches * max(patches, dim))))


def check(embeddings: Tensor) -> None:
    """Refuse what is not (channels, patches, dim) with at least one channel and two patches."""
    if embeddings.ndim != 3 or len(embeddings) < 1 or embeddings.shape[1] < 2:
        raise InputError(
            "embeddings have the wrong shape",
            got=tuple(embeddings.shape),
            expected="(channels, patches, dim) with at least 1 channel and 2 patches",
        )


def chunks(embeddings: Tensor) -> tuple[Tensor, ...]:
    """Split into parts of :func:`at_once` channels, after :func:`check`."""
    check(embeddings)
    return embeddings.split(at_once(*embeddings.shape[1:]))


def units(embeddings: Tensor) -> tuple[Tensor, Tensor]:
    """Grid unit rows, float64, and which channels have only usable rows, bool (channels,)."""
    unit = unit_rows(embeddings)
    return unit.rows.to(torch.float64), unit.nonzero.all(1)


def largest(embeddings: Tensor) -> tuple[Tensor, Tensor]:
    """Size of each channel's largest coordinate, float64 (channels,), and which are usable.

    Usable are those of :func:`units`; the others' size means nothing.
    """
    low, high = torch.aminmax(embeddings, dim=-1)
    size = torch.maximum(-low, high).to(torch.float64)
    return size.amax(1), (torch.isfinite(size) & (size > 0)).all(1)


def patch_mean(x: Tensor) -> Tensor:
    """Mean over patches: (..., patches, dim) to (..., dim)."""
    return fold_mean(x.mT)


def cosine(a: Tensor, b: Tensor) -> Tensor:
    """Cosines over the last axis; 0 where one of the two is zero."""
    scale = (fold_sum(a * a) * fold_sum(b * b)).sqrt()
    return fold_sum(a * b) / torch.where(scale > 0, scale, 1.0)
