"""What each cluster is: its size, its middle, its prototype and the concepts that name it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from psi_engine.errors import InputError
from psi_engine.ops.exact import cosines, fold_sum, gram, unit_rows
from psi_engine.scores.arrays import as_tensor
from psi_engine.scores.distinctness import Texts, cluster_sums, texts_at_level
from psi_engine.types import Clusters, Scores

TOP_CONCEPTS = 5
"""Concepts listed per cluster."""

_BYTES = 1 << 28
# Temporaries of the channels that are described together.


def describe_clusters(
    embeddings: Any, scores: Scores, text_embeddings: Any = None, concept_ids: Any = None
) -> Clusters:
    """Describe every cluster of the scored channels.

    Parameters
    ----------
    embeddings : floating (channels, patches, dim)
        What was given to :func:`psi_engine.score`.
    scores : Scores
        Its result.
    text_embeddings : floating (prompts, dim), optional
    concept_ids : integer (prompts,), optional
        Which concept each prompt names; None = each its own.

    Returns
    -------
    Clusters
        Channel by channel, cluster by cluster; channels that were not scored have none.

    Raises
    ------
    InputError
        Shapes do not fit each other, or a text row has no direction.

    Notes
    -----
    Clusters have the names that D gave them: where ``scores`` holds a centre (D's ``margin``), by
    what sets their mean embedding apart from it, else by their prototype.
    """
    x = as_tensor("embeddings", embeddings)
    if x.ndim != 3 or x.shape[:2] != scores.assignments.shape:
        raise InputError(
            "embeddings do not fit the scores",
            got=tuple(x.shape),
            expected=f"{(*scores.assignments.shape, 'dim')}",
        )
    texts = None if text_embeddings is None else _concepts(text_embeddings, concept_ids, x)
    step = _channels_at_once(x, scores, texts)
    parts = [
        _describe(x[start : start + step], start, scores, texts) for start in range(0, len(x), step)
    ]
    channel, cluster, size, silhouettes, medoid, prototypes = (
        torch.cat(column) for column in zip(*(part for part, _ in parts), strict=True)
    )
    concepts = similarities = None
    if texts is not None:
        concepts, similarities = (
            torch.cat(column) for column in zip(*(named for _, named in parts), strict=True)
        )
    return Clusters(channel, cluster, size, silhouettes, medoid, prototypes, concepts, similarities)


def _channels_at_once(x: Tensor, scores: Scores, texts: Texts | None) -> int:
    patches, dim = x.shape[1:]
    k = max(1, int(scores.n_clusters.max()))
    names = 0 if texts is None else len(texts.rows)
    each = patches * (4 * dim + 12 * patches) + k * (24 * dim + 24 * patches + 40 * names)
    return max(1, _BYTES // each)


def _concepts(text_embeddings: Any, concept_ids: Any, x: Tensor) -> Texts:
    prompts = as_tensor("text_embeddings", text_embeddings)
    if prompts.ndim != 2 or prompts.shape[1] != x.shape[2]:
        raise InputError(
            "text_embeddings do not fit the embeddings",
            got=tuple(prompts.shape),
            expected=f"(prompts, {x.shape[2]})",
        )
    ids = (
        torch.arange(len(prompts)) if concept_ids is None else as_tensor("concept_ids", concept_ids)
    )
    if tuple(ids.shape) != (len(prompts),):
        raise InputError(
            "concept_ids has the wrong shape", got=tuple(ids.shape), expected=f"({len(prompts)},)"
        )
    return texts_at_level(
        prompts, ids.to(prompts.device, torch.int64), "concept", "text_embeddings"
    )


def _describe(
    x: Tensor, start: int, scores: Scores, texts: Texts | None
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    part = slice(start, start + len(x))
    labels = scores.assignments[part].to(x.device)
    silhouettes = scores.silhouettes[part].to(x.device)
    units = unit_rows(x).rows
    k = max(1, int(scores.n_clusters[part].max()))
    members = labels[:, None, :] == torch.arange(k, device=x.device)[:, None]
    size = members.sum(-1)
    channel, cluster = torch.nonzero(size > 0, as_tuple=True)
    sums = cluster_sums(units, labels, k)[channel, cluster]
    inside = members[channel, cluster]  # (clusters, patches)
    prototypes = unit_rows(sums).rows
    # the greatest mean cosine to the other members: a patch's cosine with itself is 1 for all
    to_members = members.to(torch.float64) @ gram(units).to(torch.float64)
    medoid = torch.where(inside, to_members[channel, cluster], -torch.inf).argmax(-1)
    total = fold_sum(torch.where(inside, silhouettes[channel], 0.0))
    sizes = size[channel, cluster]
    rows = prototypes
    if scores.centre is not None:
        rows = unit_rows(sums / sizes[:, None] - scores.centre.to(x.device, torch.float64)).rows
    named = () if texts is None else _name(rows, texts)
    columns = (channel + start, cluster, sizes, total / sizes, medoid, prototypes)
    return tuple(x.cpu() for x in columns), tuple(x.cpu() for x in named)


def _name(rows: Tensor, texts: Texts) -> tuple[Tensor, Tensor]:
    """Ids and similarities of the best concepts of each unit row, (clusters, 5)."""
    found = cosines(rows, texts.rows.to(rows.device)).to(torch.float64)
    count = min(TOP_CONCEPTS, found.shape[1])
    values, order = torch.sort(found, dim=1, descending=True, stable=True)
    ids = torch.full((len(found), TOP_CONCEPTS), -1, dtype=torch.int64, device=found.device)
    similarities = torch.full_like(ids, torch.nan, dtype=torch.float64)
    ids[:, :count] = texts.concept_ids.to(found.device)[order[:, :count]]
    similarities[:, :count] = values[:, :count]
    return ids, similarities
