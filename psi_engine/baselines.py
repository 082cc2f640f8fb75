"""Measures of neighbouring projects, on the embeddings that PSI is computed from.

Formulas only, written from their papers, for comparison beside PSI. None of them has a null.
Every function takes embeddings (channels, patches, dim) in float32 or float64, works in
float64 and leaves channels with NaN or zero rows as NaN.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from psi_engine.errors import InputError
from psi_engine.ops.exact import fold_mean, fold_sum, unit_rows
from psi_engine.ops.random import hash_keys, permutations, string_key

MEASURES = (
    "semanticlens_polysemanticity",
    "semanticlens_redundancy",
    "monosemanticity",
    "pure_intra",
    "pure_inter",
)
"""What :func:`measure_all` computes; clarity is part of the scores."""

_RESTARTS = 10
_ROUNDS = 100
_EXAMPLES = 9
_AT_ONCE = 64
# Channels worked on together: in float64 a few copies of their embeddings are held.


def measure_all(embeddings: Tensor, weights: Tensor, whole: Tensor) -> dict[str, Tensor]:
    """Compute every measure that needs only the top patches, as columns of ``channels.parquet``.

    Parameters
    ----------
    embeddings : Tensor, floating (channels, patches, dim)
    weights : Tensor, floating (channels, patches)
        Activations scaled to [0, 1] by the channel's range over the data, for MS; NaN leaves the
        patch out of it.
    whole : Tensor, bool (channels,)
        Channels with every patch valid; the others become NaN.

    Returns
    -------
    dict of str to Tensor
        float64 (channels,) each.
    """
    columns = {name: torch.full((len(whole),), torch.nan, dtype=torch.float64) for name in MEASURES}
    rows = torch.nonzero(whole)[:, 0]
    if not len(rows):
        return columns
    means = []
    for part in rows.split(_AT_ONCE):
        x = embeddings[part]
        pairs = _two_clusters(x, seed=0)
        columns["semanticlens_polysemanticity"][part] = _centres_apart(pairs)
        columns["pure_intra"][part], columns["pure_inter"][part] = _within_and_between(pairs)
        columns["monosemanticity"][part] = monosemanticity(x, weights[part])
        means.append(_mean_direction(x))
    columns["semanticlens_redundancy"][rows] = _nearest_other(torch.cat(means))
    return columns


def clarity(embeddings: Tensor) -> Tensor:
    """Mean cosine of two different patches of a channel: float64 (channels,), in [−1, 1].

    References
    ----------
    Dreyer et al., "Mechanistic understanding and validation of large AI models with
    SemanticLens", 2025: n/(n − 1)·(‖mean v̂‖² − 1/n).
    """
    units, usable = _units(embeddings)
    n = units.shape[1]
    mean = _patch_mean(units)
    value = n / (n - 1) * (fold_sum(mean * mean) - 1 / n)
    return torch.where(usable, value, torch.nan)


def redundancy(embeddings: Tensor) -> Tensor:
    """Greatest cosine of a channel's mean embedding with another channel's: float64 (channels,).

    SemanticLens averages it over the channels of a layer. NaN for a lone channel.
    """
    return _nearest_other(torch.cat([_mean_direction(part) for part in embeddings.split(_AT_ONCE)]))


def _mean_direction(embeddings: Tensor) -> Tensor:
    """Grid unit rows of the channels' means, float32 (channels, dim); zero where there is none."""
    _, usable = _units(embeddings)
    mean = unit_rows(_patch_mean(embeddings.to(torch.float64)))
    return torch.where(usable[:, None], mean.rows, 0.0)


def _nearest_other(directions: Tensor) -> Tensor:
    usable = directions.any(1)
    y = directions.to(torch.float64)
    columns = torch.arange(len(y), device=y.device)
    parts = []
    for rows in columns.split(_AT_ONCE):
        allowed = usable & (columns != rows[:, None])
        parts.append(torch.where(allowed, y[rows] @ y.mT, -torch.inf).amax(1))
    best = torch.cat(parts)
    return torch.where(usable & torch.isfinite(best), best, torch.nan)


def semanticlens_polysemanticity(embeddings: Tensor, seed: int = 0) -> Tensor:
    """1 − cosine of the two centres of Euclidean 2-means: float64 (channels,), in [0, 2].

    Notes
    -----
    On embeddings as they come, not normalised; the best of 10 seedings. With a cluster of fewer
    than two patches: 1 − the mean cosine of the first ten patches with the mean of all.
    """
    parts = embeddings.split(_AT_ONCE)
    return torch.cat([_centres_apart(_two_clusters(part, seed)) for part in parts])


def _centres_apart(pairs: _Pairs) -> Tensor:
    x = pairs.x
    size, centres = _centres(x, pairs.assignments)
    apart = 1 - _cosine(centres[:, 0], centres[:, 1])
    mean = _patch_mean(x)
    spread = 1 - fold_mean(_cosine(x[:, :10], mean[:, None]))
    value = torch.where(size.amin(1) < 2, spread, apart)
    return torch.where(pairs.usable, value, torch.nan)


def monosemanticity(embeddings: Tensor, activations: Tensor) -> Tensor:
    """Activation-weighted mean cosine over all pairs (MS): float64 (channels,).

    Parameters
    ----------
    embeddings : Tensor, floating (channels, patches, dim)
    activations : Tensor, floating (channels, patches)
        Weights ã ≥ 0: activations scaled to [0, 1] by the channel's range over the data; NaN
        leaves the patch out.

    Notes
    -----
    Σ_{i<j} ã_i ã_j cos(e_i, e_j)/Σ_{i<j} ã_i ã_j in O(patches): with W = Σ ã_i ê_i it is
    (‖W‖² − Σã²)/((Σã)² − Σã²). NaN where fewer than two weights are positive.

    References
    ----------
    Pach et al., "Sparse autoencoders learn monosemantic features in vision-language models",
    2025, equation 4.
    """
    if activations.shape != embeddings.shape[:2]:
        raise InputError(
            "activations do not fit the embeddings",
            got=tuple(activations.shape),
            expected=tuple(embeddings.shape[:2]),
        )
    units, usable = _units(embeddings)
    weight = activations.to(torch.float64)
    weight = torch.where(torch.isnan(weight), 0.0, weight)
    if bool((weight < 0).any()):
        raise InputError(
            "activations are negative",
            got=float(weight.min()),
            expected="weights in [0, 1]",
            fix="scale them by the channel's minimum and maximum",
        )
    whole = fold_sum((units * weight[..., None]).mT)
    square = fold_sum(weight * weight)
    pairs = fold_sum(weight) ** 2 - square
    value = (fold_sum(whole * whole) - square) / torch.where(pairs > 0, pairs, 1.0)
    return torch.where(usable & (pairs > 0), value, torch.nan)


def pure_ratio(embeddings: Tensor, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Mean Euclidean distance within and between two clusters: float64 (channels,) twice.

    NaN where a cluster has a single patch (no distance within) in both clusters.

    References
    ----------
    Dreyer et al., "PURE: turning polysemantic neurons into pure features by identifying relevant
    circuits", 2024, section 4.
    """
    parts = embeddings.split(_AT_ONCE)
    found = [_within_and_between(_two_clusters(part, seed)) for part in parts]
    within, between = zip(*found, strict=True)
    return torch.cat(within), torch.cat(between)


def _within_and_between(pairs: _Pairs) -> tuple[Tensor, Tensor]:
    together = pairs.assignments[:, :, None] == pairs.assignments[:, None, :]
    other = ~torch.eye(together.shape[-1], dtype=torch.bool, device=together.device)
    means = []
    for chosen in (together & other, ~together):
        total = fold_sum(fold_sum(torch.where(chosen, pairs.distance, 0.0)))
        count = chosen.sum((1, 2))
        there = pairs.usable & (count > 0)
        means.append(torch.where(there, total / count.clamp(min=1), torch.nan))
    return means[0], means[1]


def interpretability(
    top: Tensor, bottom: Tensor, seed: int = 0, trials: int = 20, temperature: float = 0.16
) -> Tensor:
    """How well similarity to references tells a unit's top from its bottom images (MIS).

    Parameters
    ----------
    top, bottom : Tensor, floating (channels, patches, dim)
        Embeddings of the most and least activating images, at least 10 each.
    trials : int
        Each draws 9 references and a query from either side.
    temperature : float
        Of the softmax over the two candidate answers.

    Returns
    -------
    Tensor
        float64 (channels,) in [0, 1]: mean probability of the right answer; 0.5 is chance.

    References
    ----------
    Zimmermann, Klindt, Brendel, "Measuring mechanistic interpretability at scale without
    humans", 2024: a task asks which query belongs to the positive references.
    """
    if min(top.shape[1], bottom.shape[1]) < _EXAMPLES + 1:
        raise InputError(
            "too few examples",
            got=f"{top.shape[1]} top and {bottom.shape[1]} bottom",
            expected=f"at least {_EXAMPLES + 1} each",
        )
    (high, high_usable), (low, low_usable) = _units(top), _units(bottom)
    total = torch.zeros(len(top), dtype=torch.float64, device=top.device)
    for trial in range(trials):
        query_high, mean_high = _draw(high, seed, trial, 0)
        query_low, mean_low = _draw(low, seed, trial, 1)
        towards = mean_high - mean_low
        margin = fold_sum((query_high - query_low) * towards)
        total += torch.sigmoid(margin / temperature)
    return torch.where(high_usable & low_usable, total / trials, torch.nan)


def _draw(units: Tensor, seed: int, trial: int, side: int) -> tuple[Tensor, Tensor]:
    """A query (channels, dim) and the mean of nine other patches (channels, dim)."""
    key = hash_keys(seed, string_key("baseline.mis"), trial, side, device=units.device)
    order = permutations(key, units.shape[1])
    return units[:, order[0]], _patch_mean(units[:, order[1 : _EXAMPLES + 1]])


def _units(embeddings: Tensor) -> tuple[Tensor, Tensor]:
    """Unit rows, float64, and which channels have nothing but usable rows, bool (channels,)."""
    if embeddings.ndim != 3 or embeddings.shape[1] < 2:
        raise InputError(
            "embeddings have the wrong shape",
            got=tuple(embeddings.shape),
            expected="(channels, patches, dim) with at least 2 patches",
        )
    unit = unit_rows(embeddings)
    return unit.rows.to(torch.float64), unit.nonzero.all(1)


class _Pairs(NamedTuple):
    """Channels split in two: what the measures of SemanticLens and PURE share."""

    x: Tensor  # float64 (channels, patches, dim), zero where not usable
    usable: Tensor  # bool (channels,)
    distance: Tensor  # float64 (channels, patches, patches), Euclidean
    assignments: Tensor  # int64 (channels, patches)


def _two_clusters(embeddings: Tensor, seed: int) -> _Pairs:
    _, usable = _units(embeddings)
    x = torch.where(usable[:, None, None], embeddings.to(torch.float64), 0.0)
    distance = torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist")
    return _Pairs(x, usable, distance, _two_means(distance**2, seed))


def _patch_mean(x: Tensor) -> Tensor:
    return fold_mean(x.mT)


def _cosine(a: Tensor, b: Tensor) -> Tensor:
    scale = (fold_sum(a * a) * fold_sum(b * b)).sqrt()
    return fold_sum(a * b) / torch.where(scale > 0, scale, 1.0)


def _centres(x: Tensor, assignments: Tensor) -> tuple[Tensor, Tensor]:
    """Sizes (channels, 2) and means (channels, 2, dim) of two clusters."""
    members = (assignments[:, None] == torch.arange(2, device=x.device)[:, None]).to(x.dtype)
    size = members.sum(-1)
    sums = torch.stack([fold_sum((x * members[:, j, :, None]).mT) for j in (0, 1)], 1)
    return size, sums / size.clamp(min=1)[..., None]


def _two_means(distance: Tensor, seed: int) -> Tensor:
    """Euclidean 2-means from squared distances, the best of ten seedings: int64 (channels, n).

    Seeds: a random patch and one drawn with probability proportional to its squared distance
    from it; then reassignment until nothing moves.
    """
    channels, n, _ = distance.shape
    device = distance.device
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
