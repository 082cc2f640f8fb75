"""Euclidean 2-means of every channel: what the measures of SemanticLens and PURE share.

On embeddings as they come, not normalised, as both projects do with scikit-learn's KMeans
(k = 2, 10 initialisations). Lloyd's rounds here too; the seeding is keyed, so a channel's result
depends on nothing but the channel and the seed.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from psi_engine.baselines.rows import largest, patch_mean
from psi_engine.ops.exact import fold_sum, quantise
from psi_engine.ops.random import hash_keys, permutations, string_key

_RESTARTS = 10
_ROUNDS = 100
_MANTISSA = 53


class Pairs(NamedTuple):
    """Channels split in two.

    x : float64 (channels, patches, dim), times 2^−exponent; zero where not usable.
    exponent : int32 (channels,), of the channel's largest coordinate.
    usable : bool (channels,).
    distance : float64 (channels, patches, patches), Euclidean, in the units of the embeddings.
    assignments : int64 (channels, patches), 0 or 1.
    """

    x: Tensor
    exponent: Tensor
    usable: Tensor
    distance: Tensor
    assignments: Tensor


def split_in_two(embeddings: Tensor, seed: int) -> Pairs:
    """Split each channel by 2-means.

    Notes
    -----
    Distances come from the Gram matrix of the rows less their mean, divided by the longest of
    them and rounded to multiples of 2⁻²⁴: its products are exact in any order, so the bits do
    not depend on the batch. The rounding moves a distance by about 10⁻⁷ of the longest row.
    """
    size, usable = largest(embeddings)
    exponent = torch.frexp(torch.where(usable, size, 0.0)).exponent
    scale = torch.ldexp(torch.ones_like(size), -exponent)[:, None, None]
    x = torch.where(usable[:, None, None], embeddings.to(torch.float64) * scale, 0.0)
    apart = x - patch_mean(x)[:, None]
    longest = fold_sum(apart * apart).amax(1).sqrt()
    rows = quantise(apart / torch.where(longest > 0, longest, 1.0)[:, None, None])
    grams = rows.to(torch.float64) @ rows.to(torch.float64).mT
    own = grams.diagonal(dim1=-2, dim2=-1)
    squared = own[:, :, None] + own[:, None, :] - 2 * grams
    distance = squared.sqrt() * torch.ldexp(longest, exponent)[:, None, None]
    return Pairs(x, exponent, usable, distance, _two_means(squared, seed))


def centres(pairs: Pairs) -> tuple[Tensor, Tensor]:
    """Sizes (channels, 2) and means (channels, 2, dim) of the clusters, float64, scaled like x."""
    x, assignments = pairs.x, pairs.assignments
    members = (assignments[:, None] == torch.arange(2, device=x.device)[:, None]).to(x.dtype)
    size = members.sum(-1)
    sums = torch.stack([fold_sum((x * members[:, j, :, None]).mT) for j in (0, 1)], 1)
    return size, sums / size.clamp(min=1)[..., None]


def _two_means(squared: Tensor, seed: int) -> Tensor:
    """2-means from squared distances, the best of ten seedings: int64 (channels, patches).

    Seeds: a random patch and one drawn with probability proportional to its squared distance
    from it; then reassignment until nothing moves. Squared distances are at most 4 and are
    rounded so far that sums over all pairs are exact.
    """
    channels, n, _ = squared.shape
    device = squared.device
    bits = _MANTISSA - 2 - 2 * (n - 1).bit_length()
    distance = (squared * 2.0**bits).round() * 2.0**-bits
    rows = torch.arange(channels, device=device)
    best = torch.full((channels,), torch.inf, dtype=torch.float64, device=device)
    result = torch.zeros(channels, n, dtype=torch.int64, device=device)
    for restart in range(_RESTARTS):
        key = hash_keys(seed, string_key("baseline.two_means"), restart, device=device)
        order = permutations(key, n)
        from_first = distance[:, order[0]]
        up_to = from_first.cumsum(1)
        share = (order[1].to(torch.float64) + 0.5) / n
        second = torch.searchsorted(up_to, up_to[:, -1:] * share, right=True).clamp(max=n - 1)
        labels = (from_first > distance[rows, second[:, 0]]).to(torch.int64)
        for _ in range(_ROUNDS):
            to_centre, _ = _to_centres(distance, labels)
            moved = (to_centre[:, 1] < to_centre[:, 0]).to(torch.int64)
            if torch.equal(moved, labels):
                break
            labels = moved
        _, cost = _to_centres(distance, labels)
        better = cost < best
        best = torch.where(better, cost, best)
        result = torch.where(better[:, None], labels, result)
    return result


def _to_centres(distance: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Squared distances to two clusters' means (channels, 2, patches), and their sum within.

    From squared distances between patches alone: ‖x_i − m_j‖² is the mean distance of i to the
    members of j less half the mean distance among them.
    """
    members = torch.stack([labels == 0, labels == 1], 1).to(distance.dtype)
    size = members.sum(-1).clamp(min=1)
    sums = members @ distance
    within = (sums * members).sum(-1) / 2
    return sums / size[..., None] - (within / size**2)[..., None], (within / size).sum(-1)
