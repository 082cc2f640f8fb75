"""How distinctly text names the clusters of a channel, from their similarities to the texts.

Three measures of one cluster, averaged over the clusters of the channel:

* ``gap`` (paper, section 3.3): the cluster's best similarity minus its second best;
* ``contrast``: the similarity to the cluster's own best text minus the best similarity that any
  *other* cluster of the channel has to that text;
* ``margin``: the similarity to the cluster's own best text minus its similarity to the nearest
  name of another cluster, every patch counting once.

A gap is blind where a vocabulary holds synonyms, and never asks whether two clusters have
different names; the other two do.
"""

from __future__ import annotations

import torch
from torch import Tensor

from psi_engine.config import Backend, DMeasure
from psi_engine.errors import InputError
from psi_engine.ops.backend import in_chunks, memory_budget, resolve_backend
from psi_engine.ops.exact import fold_sum


def measure(similarities: Tensor, weights: Tensor, kind: DMeasure) -> Tensor:
    """D from the similarities of clusters to texts.

    Parameters
    ----------
    similarities : Tensor, float (..., k, texts)
    weights : Tensor, float64 (..., k)
        Weight of each cluster in the mean; 0 where there is no such cluster.
    kind : {"gap", "contrast", "margin"}

    Returns
    -------
    Tensor
        float64 (...). 0 for a channel without a cluster and, but for ``gap``, with fewer than
        two.

    Notes
    -----
    Ties for the best text go to the first.
    """
    if kind == "gap":
        best_two = similarities.topk(2, dim=-1).values.to(torch.float64)
        return mean_over(best_two[..., 0] - best_two[..., 1], weights)
    best = similarities.amax(-1)
    position = torch.arange(similarities.shape[-1], device=similarities.device)
    first = torch.where(similarities == best[..., None], position, len(position)).amin(-1)
    k = similarities.shape[-2]
    to_names = torch.gather(similarities, -1, first[..., None, :].expand(*best.shape, k))
    return apart(best, to_names, weights, kind)


def apart(best: Tensor, to_names: Tensor, weights: Tensor, kind: DMeasure) -> Tensor:
    """``contrast`` or ``margin`` from the similarities of clusters to each other's names.

    Parameters
    ----------
    best : Tensor, float (..., k)
        Similarity of each cluster to its own best text, its name.
    to_names : Tensor, float (..., k, k)
        ``[l, j]``: similarity of cluster l to the name of cluster j.
    weights : Tensor, float64 (..., k)
    kind : {"contrast", "margin"}

    Returns
    -------
    Tensor
        float64 (...).
    """
    k = best.shape[-1]
    # rivals[r, j]: what cluster j's best is held against
    rivals = to_names if kind == "contrast" else to_names.mT
    present = weights > 0
    rival = present[..., :, None] & ~torch.eye(k, dtype=torch.bool, device=best.device)
    others = torch.where(rival, rivals, float("-inf")).amax(-2)
    value = torch.where(torch.isinf(others), 0.0, best.to(torch.float64) - others)
    return torch.where(present.sum(-1) > 1, mean_over(value, weights), 0.0)


def mean_over(values: Tensor, weights: Tensor) -> Tensor:
    """Weighted mean over the last axis: float64 (...); 0 where every weight is 0."""
    weighted = torch.where(weights > 0, values, 0.0).to(torch.float64) * weights
    total = fold_sum(weights)
    return fold_sum(weighted) / torch.where(total > 0, total, 1.0)


def factored_measure(
    factors: Tensor,
    bank: Tensor,
    weights: Tensor,
    kind: DMeasure,
    *,
    backend: Backend = "auto",
    memory: int | None = None,
) -> Tensor:
    """D of each channel against each of many sets of texts, both given by few coordinates.

    Parameters
    ----------
    factors : Tensor, float32 (n, k, r)
        Clusters, on the grid of :mod:`psi_engine.ops.exact`, rows of length at most one.
    bank : Tensor, float32 (sets, r, texts)
        Texts, on the same grid, columns of length at most one. Similarities are products.
    weights : Tensor, float64 (n, k)
        See :func:`measure`.
    kind : {"gap", "contrast", "margin"}
    backend, memory
        As in :func:`psi_engine.ops.clustering.cluster`.

    Returns
    -------
    Tensor
        float64 (n, sets).

    Raises
    ------
    InputError
        A shape does not fit, or there are fewer than two texts.
    """
    if factors.ndim != 3 or bank.ndim != 3 or factors.shape[2] != bank.shape[1]:
        raise InputError(
            "factors and bank do not fit each other",
            got=f"{tuple(factors.shape)} and {tuple(bank.shape)}",
            expected="(n, k, r) and (sets, r, texts)",
        )
    if weights.shape != factors.shape[:2]:
        raise InputError(
            "weights do not fit factors",
            got=tuple(weights.shape),
            expected=tuple(factors.shape[:2]),
        )
    if bank.shape[2] < 2:
        raise InputError("a name needs texts to choose from", got=bank.shape[2], expected="2")
    if resolve_backend(backend, factors) == "numba":
        from psi_engine.ops import _numba_naming

        return _numba_naming.factored_measure(factors, bank, weights, kind)
    n, k, _ = factors.shape
    sets, _, texts = bank.shape
    wide = bank.to(torch.float64).movedim(0, 1).flatten(1)  # (r, sets · texts)

    def run(part: slice) -> Tensor:
        # products of grid numbers: exact in float64, in any order
        found = (factors[part].to(torch.float64).flatten(0, 1) @ wide).unflatten(1, (sets, texts))
        found = found.unflatten(0, (-1, k)).movedim(2, 1)
        return measure(found, weights[part, None].expand(-1, sets, -1), kind)

    budget = memory_budget(factors.device, memory)
    parts = in_chunks(run, n, 40 * k * sets * texts, budget)
    return torch.cat(parts) if parts else factors.new_zeros(0, sets, dtype=torch.float64)
