"""Every partition of a few blocks of patches at once.

A single-point move cannot carry a tight group of patches from one cluster to another: each
member alone would lose. So the solver first forms a few blocks, tries every way to unite them
into k clusters, and refines the best one.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

import torch
from torch import Tensor

from psi_engine.ops.fixed_point import fine

BLOCKS = 7
"""Blocks: 63, 301, 350, 140 partitions into 2, 3, 4, 5 clusters; each block more triples them."""


def best_partition(within: Tensor, filled: Tensor, k: int) -> Tensor:
    """Unite blocks into the k clusters with the greatest objective.

    Parameters
    ----------
    within : Tensor, float64 (..., blocks, blocks)
        B'GB of the indicators B of the blocks, exact.
    filled : Tensor, bool (..., blocks)
        Which blocks have members; the empty ones stand last.
    k : int
        Clusters, at most the non-empty blocks.

    Returns
    -------
    Tensor
        int64 (..., blocks), cluster of each block; the first of :func:`partitions` on ties.
    """
    blocks = within.shape[-1]
    bits = torch.arange(blocks, device=within.device)
    subsets = (torch.arange(1 << blocks, device=within.device)[:, None] >> bits & 1).double()
    lengths = fine(((subsets @ within) * subsets).sum(-1).clamp(min=0).sqrt())
    lengths = lengths.masked_fill(filled.double() @ subsets.mT == 0, -torch.inf)
    table = torch.tensor(partitions(blocks, k), device=within.device)
    parts = table[lengths[..., table].sum(-1).argmax(-1)]  # (..., k)
    return (parts.unsqueeze(-1) >> bits & 1).argmax(-2)


@cache
def partitions(blocks: int, k: int) -> tuple[tuple[int, ...], ...]:
    """All partitions of the blocks into k parts, each part as the bits of its members.

    Each part holds the first block not yet taken; among those parts, the one that leaves the
    greatest number (as bits) comes first.
    """
    return tuple(_split((1 << blocks) - 1, k))


def _split(members: int, k: int) -> Iterator[tuple[int, ...]]:
    if k == 1:
        yield (members,)
        return
    others = members & (members - 1)
    left = others
    while left:
        for parts in _split(left, k - 1):
            yield (members ^ left, *parts)
        left = (left - 1) & others
