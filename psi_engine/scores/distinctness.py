"""D: how distinctly the clusters of a channel are named by text.

What of a cluster is held against the texts depends on the measure (:mod:`psi_engine.ops.naming`):
``gap`` and ``contrast`` compare its prototype, the mean embedding scaled to length one; ``margin``
compares its mean embedding less the pool's, so that what all patches have in common (and what
texts have in common, which images have not) names nobody, and a scattered cluster stays faint.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from psi_engine.config import DLevel, DMeasure
from psi_engine.errors import InputError
from psi_engine.ops.exact import cosines, fold_sum, near, quantise, unit_rows
from psi_engine.ops.naming import measure


class Texts(NamedTuple):
    """Text directions at one level.

    rows : float32 (texts, dim), grid unit rows: prompts, or concepts averaged over templates.
    concept : int64 (texts,), which concept each row belongs to, 0 … n_concepts − 1.
    concept_ids : int64 (n_concepts,), the caller's id of each concept, ascending.
    """

    rows: Tensor
    concept: Tensor
    concept_ids: Tensor


def texts_at_level(embeddings: Tensor, concept_ids: Tensor, level: DLevel, name: str) -> Texts:
    """Normalise prompts and, at concept level, average them by concept and normalise again.

    Parameters
    ----------
    embeddings : Tensor, floating (prompts, dim)
    concept_ids : Tensor, int64 (prompts,)
    level : {"prompt", "concept"}
    name : str
        What to call the embeddings in an error.

    Raises
    ------
    InputError
        If a row is NaN, infinite or zero, or a concept's prompts cancel out.
    """
    unit = unit_rows(embeddings)
    _refuse_bad_rows(unit.nonzero, name)
    ids, concept = torch.unique(concept_ids, return_inverse=True)
    if level == "prompt":
        return Texts(unit.rows, concept, ids)
    sums = torch.zeros(len(ids), unit.rows.shape[1], dtype=torch.float64, device=ids.device)
    sums.index_add_(0, concept, unit.rows.to(torch.float64))  # exact on the grid, in any order
    means = unit_rows(sums)
    _refuse_bad_rows(means.nonzero, f"template means of {name}")
    return Texts(means.rows, torch.arange(len(ids), device=ids.device), ids)


def _refuse_bad_rows(usable: Tensor, name: str) -> None:
    bad = int((~usable).sum())
    if bad:
        raise InputError(
            f"{name} holds rows without a direction",
            got=f"{bad} of {len(usable)} rows NaN, infinite or zero",
            expected="finite rows of nonzero length",
            fix="leave those rows out",
        )


def cluster_sums(units: Tensor, assignments: Tensor, k: int) -> Tensor:
    """Sums of the members of each cluster: float64 (n, k, dim), exact; zero where empty."""
    labels = torch.arange(k, device=units.device)
    count, n, dim = units.shape
    step = near(units, n * dim)
    sums = torch.empty(count, k, dim, dtype=torch.float64, device=units.device)
    for start in range(0, count, step):
        rows = slice(start, start + step)
        members = (assignments[rows, None, :] == labels[:, None]).to(torch.float64)
        sums[rows] = members @ units[rows].to(torch.float64)
    return sums


def prototypes(units: Tensor, assignments: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Mean embedding of each cluster, of length one.

    Parameters
    ----------
    units : Tensor, float32 (n, patches, dim)
        Grid unit rows.
    assignments : Tensor, int64 (n, patches)
        0 … k − 1, or −1 for none.

    Returns
    -------
    tuple of Tensor
        float32 (n, k, dim) unit rows, and bool (n, k): the cluster has a prototype. An empty
        cluster, or one whose members cancel out exactly, has none and gets zeros.
    """
    unit = unit_rows(cluster_sums(units, assignments, k))
    return unit.rows, unit.nonzero


class NamedRows(NamedTuple):
    """What of a channel's clusters is held against the texts.

    rows : float32 (n, k, dim), on the grid, of length at most one.
    weights : float64 (n, k), weight of each cluster in the mean; 0 = there is none.
    scale : D is this times the measure of the rows' similarities.
    """

    rows: Tensor
    weights: Tensor
    scale: float


def named_rows(
    units: Tensor, assignments: Tensor, k: int, kind: DMeasure, centre: Tensor | None = None
) -> NamedRows:
    """Rows whose similarities to the texts D compares.

    Parameters
    ----------
    units : Tensor, float32 (n, patches, dim)
        Grid unit rows.
    assignments : Tensor, int64 (n, patches)
        0 … k − 1, or −1 for none.
    kind : {"gap", "contrast", "margin"}
    centre : Tensor, float32 (dim,), optional
        On the grid. Taken off by ``margin``; None = zero.
    """
    if kind != "margin":
        rows, present = prototypes(units, assignments, k)
        return NamedRows(rows, present.to(torch.float64), 1.0)
    sizes = (assignments[:, None, :] == torch.arange(k, device=units.device)[:, None]).sum(-1)
    means = cluster_sums(units, assignments, k) / sizes.clamp(min=1)[..., None]
    apart = means if centre is None else means - centre.to(torch.float64)
    # halves: a difference of two means may be longer than one
    rows = torch.where(sizes[..., None] > 0, quantise(apart / 2), 0.0)
    return NamedRows(rows, sizes.to(torch.float64), 2.0)


def distinctness(
    units: Tensor,
    assignments: Tensor,
    k: int,
    texts: Texts,
    kind: DMeasure,
    centre: Tensor | None = None,
) -> Tensor:
    """D of each channel: float64 (n,); see :func:`named_rows` and :func:`~ops.naming.measure`."""
    named = named_rows(units, assignments, k, kind, centre)
    return named.scale * measure(cosines(named.rows, texts.rows), named.weights, kind)


def partition_distinctness(
    similarities: Tensor,
    grams: Tensor,
    assignments: Tensor,
    k: int,
    kind: DMeasure,
    centre: Tensor | None = None,
) -> Tensor:
    """D of many partitions of each channel's patches, from patch similarities and Grams.

    Parameters
    ----------
    similarities : Tensor, float32 (n, patches, texts)
        Cosines of patches to texts.
    grams : Tensor, float32 (n, patches, patches)
    assignments : Tensor, int64 (n, partitions, patches)
        −1 leaves a patch out.
    centre : Tensor, float32 (texts,), optional
        Similarities of the pool's mean, for ``margin``; None = zero.

    Returns
    -------
    Tensor
        float64 (n, partitions). A prototype's similarity is Σ similarities of its members over
        the length of their sum, √(h' G h); a mean's, over their number.
    """
    partitions = assignments.shape[1]
    labels = torch.arange(k, device=grams.device)
    members = (assignments[:, :, None, :] == labels[:, None]).to(torch.float64).flatten(1, 2)
    sums = members @ similarities.to(torch.float64)
    scale = 1.0
    if kind == "margin":
        weights, scale = members.sum(-1), 2.0
        means = sums / weights.clamp(min=1)[..., None]
        named = quantise((means if centre is None else means - centre.to(torch.float64)) / 2)
    else:
        square = fold_sum((members @ grams.to(torch.float64)) * members)
        present = square > 0
        weights = present.to(torch.float64)
        named = quantise(sums / torch.where(present, square, 1.0).sqrt()[..., None])
    shape = (partitions, k)
    return scale * measure(named.unflatten(1, shape), weights.unflatten(1, shape), kind)
