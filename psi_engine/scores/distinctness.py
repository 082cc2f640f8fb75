"""D: how distinctly the clusters of a channel are named by text.

Two measures of one cluster, averaged over the clusters of the channel:

* ``gap`` (paper, section 3.3): the prototype's best similarity minus its second best;
* ``contrast``: the similarity to the cluster's own best concept minus the best similarity that
  any *other* cluster of the channel has to that concept. A gap is blind where a vocabulary holds
  synonyms, and never asks whether two clusters have different names; contrast does.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from psi_engine.config import DLevel, DMeasure
from psi_engine.errors import InputError
from psi_engine.ops.exact import cosines, fold_sum, near, quantise, unit_rows


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


def measure(similarities: Tensor, present: Tensor, kind: DMeasure) -> Tensor:
    """D from the similarities of clusters to texts.

    Parameters
    ----------
    similarities : Tensor, float32 (n, k, texts)
        On the grid.
    present : Tensor, bool (n, k)
        Clusters that exist; the mean is over them.
    kind : {"gap", "contrast"}

    Returns
    -------
    Tensor
        float64 (n,). 0 for a channel without a cluster, and for ``contrast`` with fewer than two.

    Notes
    -----
    Ties for the best concept go to the first text.
    """
    if kind == "gap":
        best_two = similarities.topk(2, dim=-1).values.to(torch.float64)
        return mean_over(best_two[..., 0] - best_two[..., 1], present)
    best = similarities.amax(-1)
    position = torch.arange(similarities.shape[-1], device=similarities.device)
    first = torch.where(similarities == best[..., None], position, len(position)).amin(-1)
    n, k, _ = similarities.shape
    # to_own[i, l, j] = similarity of cluster l to the best concept of cluster j
    to_own = torch.gather(similarities, 2, first[:, None, :].expand(n, k, k))
    return contrast(best, to_own, present)


def contrast(best: Tensor, to_own: Tensor, present: Tensor) -> Tensor:
    """Mean over clusters j of best[j] − max over other clusters l of to_own[l, j].

    Parameters
    ----------
    best : Tensor (..., k)
    to_own : Tensor (..., k, k)
    present : Tensor, bool (..., k)
    """
    k = best.shape[-1]
    rival = present[..., :, None] & ~torch.eye(k, dtype=torch.bool, device=best.device)
    others = torch.where(rival, to_own, float("-inf")).amax(-2)
    value = torch.where(torch.isinf(others), 0.0, (best.to(torch.float64) - others))
    return torch.where(present.sum(-1) > 1, mean_over(value, present), 0.0)


def mean_over(values: Tensor, present: Tensor) -> Tensor:
    """Mean over the last axis where present; 0 where nothing is."""
    total = fold_sum(torch.where(present, values, 0.0).to(torch.float64))
    return total / present.sum(-1).clamp(min=1)


def distinctness(
    units: Tensor, assignments: Tensor, k: int, texts: Texts, kind: DMeasure
) -> Tensor:
    """D of each channel: float64 (n,); see :func:`prototypes` and :func:`measure`."""
    rows, present = prototypes(units, assignments, k)
    return measure(cosines(rows, texts.rows), present, kind)


def partition_distinctness(
    similarities: Tensor, grams: Tensor, assignments: Tensor, k: int, kind: DMeasure
) -> Tensor:
    """D of many partitions of each channel's patches, from patch similarities and Grams.

    Parameters
    ----------
    similarities : Tensor, float32 (n, patches, texts)
        Cosines of patches to texts.
    grams : Tensor, float32 (n, patches, patches)
    assignments : Tensor, int64 (n, partitions, patches)
        −1 leaves a patch out.

    Returns
    -------
    Tensor
        float64 (n, partitions). A prototype's similarity is Σ similarities of its members over
        the length of their sum, √(h' G h).
    """
    n, partitions, _ = assignments.shape
    labels = torch.arange(k, device=grams.device)
    members = (assignments[:, :, None, :] == labels[:, None]).to(torch.float64).flatten(1, 2)
    square = fold_sum((members @ grams.to(torch.float64)) * members)
    present = square > 0
    length = torch.where(present, square, 1.0).sqrt()
    named = quantise((members @ similarities.to(torch.float64)) / length[..., None])
    return measure(
        named.unflatten(1, (partitions, k)).flatten(0, 1),
        present.unflatten(1, (partitions, k)).flatten(0, 1),
        kind,
    ).unflatten(0, (n, partitions))
