"""PURE: distances within and between two clusters of a channel's patches.

References
----------
Dreyer, Purelku, Vielhaben, Samek, Lapuschkin, "PURE: turning polysemantic neurons into pure
features by identifying relevant circuits", CVPR workshops, 2024 (arXiv:2404.06453), the
evaluation by embeddings of a foundation model.
"""

from __future__ import annotations

import torch
from torch import Tensor

from psi_engine.baselines.rows import chunks
from psi_engine.baselines.two_means import Pairs, split_in_two
from psi_engine.ops.exact import fold_sum


def pure_ratio(embeddings: Tensor, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Mean Euclidean distance of pairs of patches within and between two clusters.

    Parameters
    ----------
    embeddings : Tensor, floating (channels, patches, dim)
    seed : int
        Of the clustering.

    Returns
    -------
    tuple of Tensor
        Within and between, float64 (channels,) each, in the units of the embeddings. NaN where
        there is no such pair.

    Notes
    -----
    Over all pairs within either cluster together, and over all pairs between them. PURE judges
    with these a clustering of circuit attributions; this is its reference, the clustering (k = 2)
    of the embeddings themselves.
    """
    found = [within_and_between(split_in_two(part, seed)) for part in chunks(embeddings)]
    within, between = zip(*found, strict=True)
    return torch.cat(within), torch.cat(between)


def within_and_between(pairs: Pairs) -> tuple[Tensor, Tensor]:
    """Return what :func:`pure_ratio` does, for channels split already."""
    together = pairs.assignments[:, :, None] == pairs.assignments[:, None, :]
    other = ~torch.eye(together.shape[-1], dtype=torch.bool, device=together.device)
    means = []
    for chosen in (together & other, ~together):
        total = fold_sum(fold_sum(torch.where(chosen, pairs.distance, 0.0)))
        count = chosen.sum((1, 2))
        there = pairs.usable & (count > 0)
        means.append(torch.where(there, total / count.clamp(min=1), torch.nan))
    return means[0], means[1]
