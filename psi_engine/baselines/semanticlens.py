"""SemanticLens: clarity, polysemanticity and redundancy.

References
----------
Dreyer, Berend, Labarta, Vielhaben, Wiegand, Lapuschkin, Samek, "Mechanistic understanding and
validation of large AI models with SemanticLens", Nature Machine Intelligence, 2025
(arXiv:2501.05398), on human-interpretability measures; where the paper leaves a choice open (the
number of initialisations, what a cluster of one means), the package ``semanticlens`` 0.2.1,
``scores``. ``benchmarks/peers.py`` compares with that package.
"""

from __future__ import annotations

import torch
from torch import Tensor

from psi_engine.baselines.rows import chunks, cosine, largest, patch_mean
from psi_engine.baselines.two_means import Pairs, centres, split_in_two
from psi_engine.ops.exact import fold_mean, fold_sum, unit_rows

_ROWS = 64
_EXAMPLES = 10


def clarity(embeddings: Tensor) -> Tensor:
    """Mean cosine of two different patches of a channel.

    Parameters
    ----------
    embeddings : Tensor, floating (channels, patches, dim)

    Returns
    -------
    Tensor
        float64 (channels,), in [−1/(patches − 1), 1]; NaN with a zero or non-finite row.

    Notes
    -----
    n/(n − 1)·(‖mean v̂‖² − 1/n) over the unit embeddings v̂ of the n patches. It is
    :func:`~psi_engine.baselines.monosemanticity` with equal weights.
    """
    return torch.cat([_clarity(part) for part in chunks(embeddings)])


def _clarity(embeddings: Tensor) -> Tensor:
    unit = unit_rows(embeddings)
    n = embeddings.shape[1]
    # Rows on the grid: their sum is exact in any order.
    mean = unit.rows.sum(1, dtype=torch.float64) / n
    value = n / (n - 1) * (fold_sum(mean * mean) - 1 / n)
    return torch.where(unit.nonzero.all(1), value, torch.nan)


def redundancy(embeddings: Tensor) -> Tensor:
    """Greatest cosine of a channel's mean embedding with another channel's.

    Parameters
    ----------
    embeddings : Tensor, floating (channels, patches, dim)

    Returns
    -------
    Tensor
        float64 (channels,), in [−1, 1]. NaN for a lone channel. SemanticLens reports the mean
        over the channels of a layer.
    """
    return nearest_other(torch.cat([mean_direction(part) for part in chunks(embeddings)]))


def mean_direction(embeddings: Tensor) -> Tensor:
    """Grid unit rows of the channels' means, float32 (channels, dim); zero where there is none."""
    _, usable = largest(embeddings)
    mean = unit_rows(patch_mean(embeddings.to(torch.float64)))
    return torch.where(usable[:, None], mean.rows, 0.0)


def nearest_other(directions: Tensor) -> Tensor:
    """Greatest cosine with another row, float64 (channels,), of :func:`mean_direction`'s rows."""
    usable = directions.any(1)
    y = directions.to(torch.float64)
    columns = torch.arange(len(y), device=y.device)
    parts = []
    for rows in columns.split(_ROWS):
        allowed = usable & (columns != rows[:, None])
        parts.append(torch.where(allowed, y[rows] @ y.mT, -torch.inf).amax(1))
    best = torch.cat(parts)
    return torch.where(usable & torch.isfinite(best), best, torch.nan)


def semanticlens_polysemanticity(
    embeddings: Tensor, seed: int = 0, *, centre: Tensor | None = None
) -> Tensor:
    """1 − cosine of the two centres of Euclidean 2-means.

    Parameters
    ----------
    embeddings : Tensor, floating (channels, patches, dim)
        As they come: not normalised here, as not there.
    seed : int
        Of the ten seedings, of which the best counts.
    centre : Tensor, floating (dim,), optional
        Taken from every embedding first, the mean of a pool for example. The clusters are those
        of the embeddings as they come; only the angle between their centres changes.

    Returns
    -------
    Tensor
        float64 (channels,), in [0, 2].

    Notes
    -----
    With a cluster of fewer than two patches: 1 − the mean cosine of the first ten patches with
    the mean of all.
    """
    parts = chunks(embeddings)
    return torch.cat([centres_apart(split_in_two(part, seed), centre) for part in parts])


def centres_apart(pairs: Pairs, centre: Tensor | None = None) -> Tensor:
    """The measure of :func:`semanticlens_polysemanticity` for channels split already."""
    size, means = centres(pairs)
    x, mean = pairs.x, patch_mean(pairs.x)
    if centre is not None:
        shift = torch.ldexp(centre.to(torch.float64).expand_as(mean), -pairs.exponent[:, None])
        x, mean, means = x - shift[:, None], mean - shift, means - shift[:, None]
    apart = 1 - cosine(means[:, 0], means[:, 1])
    spread = 1 - fold_mean(cosine(x[:, :_EXAMPLES], mean[:, None]))
    value = torch.where(size.amin(1) < 2, spread, apart)
    return torch.where(pairs.usable, value, torch.nan)
