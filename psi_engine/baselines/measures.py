"""Every measure that needs only the top patches, at once."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import torch
from torch import Tensor

from psi_engine.baselines.monosemanticity import monosemanticity
from psi_engine.baselines.pure import within_and_between
from psi_engine.baselines.rows import at_once, check
from psi_engine.baselines.semanticlens import (
    centres_apart,
    clarity,
    mean_direction,
    nearest_other,
)
from psi_engine.baselines.two_means import split_in_two
from psi_engine.errors import InputError

MEASURES = (
    "semanticlens_polysemanticity",
    "semanticlens_redundancy",
    "monosemanticity",
    "pure_intra",
    "pure_inter",
)
"""What :func:`measure_all` computes; clarity is part of the scores."""

DIRECTIONS: Mapping[str, int] = MappingProxyType(
    {
        "clarity": -1,
        "one_minus_clarity": 1,
        "monosemanticity": -1,
        "semanticlens_polysemanticity": 1,
        "semanticlens_polysemanticity_centred": 1,
        "semanticlens_redundancy": 0,
        "pure_intra": 0,
        "pure_inter": 0,
        "pure_ratio": 1,
    }
)
"""What :func:`measure_peers` computes, and what a larger value is said to mean.

1 polysemantic, −1 monosemantic, 0 neither: redundancy is about other channels, and PURE's two
distances mean something only together.
"""


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
    missing = torch.full_like(whole, torch.nan, dtype=torch.float64)
    columns = {name: missing.clone() for name in MEASURES}
    rows = torch.nonzero(whole)[:, 0]
    if len(rows):
        for name, values in _measure(embeddings, weights, rows, None).items():
            columns[name][rows] = values
    return columns


def measure_peers(
    embeddings: Tensor, *, weights: Tensor | None = None, centre: Tensor | None = None
) -> dict[str, Tensor]:
    """Compute what a comparison of measures needs, as published and in the usual variants.

    Parameters
    ----------
    embeddings : Tensor, floating (channels, patches, dim)
        Given to every measure as they are.
    weights : Tensor, floating (channels, patches), optional
        Activations scaled to [0, 1] for MS; all equal without them, as for sets of images that
        no unit chose, and then MS is clarity.
    centre : Tensor, floating (dim,), optional
        The mean embedding of a pool, for the column ``semanticlens_polysemanticity_centred``,
        which is left out without it.

    Returns
    -------
    dict of str to Tensor
        float64 (channels,) each, with the names of :data:`DIRECTIONS`: ``clarity``,
        ``one_minus_clarity``, ``monosemanticity``, ``semanticlens_polysemanticity``,
        ``semanticlens_polysemanticity_centred``, ``semanticlens_redundancy`` (among the channels
        given), ``pure_intra``, ``pure_inter`` and ``pure_ratio`` = inter/intra. NaN for a channel
        with a zero or non-finite row.

    Raises
    ------
    InputError
        Embeddings, weights or centre of the wrong shape, or negative weights.
    """
    check(embeddings)
    if centre is not None and centre.shape != embeddings.shape[2:]:
        raise InputError(
            "the centre does not fit the embeddings",
            got=tuple(centre.shape),
            expected=tuple(embeddings.shape[2:]),
        )
    if weights is None:
        weights = torch.ones(embeddings.shape[:2], dtype=torch.float64, device=embeddings.device)
    rows = torch.arange(len(embeddings), device=embeddings.device)
    found = _measure(embeddings, weights, rows, centre)
    found["clarity"] = clarity(embeddings)
    found["one_minus_clarity"] = 1 - found["clarity"]
    found["pure_ratio"] = found["pure_inter"] / found["pure_intra"]
    return {name: found[name] for name in DIRECTIONS if name in found}


def _measure(
    embeddings: Tensor, weights: Tensor, rows: Tensor, centre: Tensor | None
) -> dict[str, Tensor]:
    """:data:`MEASURES` of some channels, which are split in two once for all of them."""
    measured: list[dict[str, Tensor]] = []
    means = []
    for part in rows.split(at_once(*embeddings.shape[1:])):
        x = embeddings[part]
        pairs = split_in_two(x, seed=0)
        found = {"semanticlens_polysemanticity": centres_apart(pairs)}
        if centre is not None:
            found["semanticlens_polysemanticity_centred"] = centres_apart(pairs, centre)
        found["pure_intra"], found["pure_inter"] = within_and_between(pairs)
        found["monosemanticity"] = monosemanticity(x, weights[part])
        measured.append(found)
        means.append(mean_direction(x))
    columns = {name: torch.cat([found[name] for found in measured]) for name in measured[0]}
    columns["semanticlens_redundancy"] = nearest_other(torch.cat(means))
    return columns
