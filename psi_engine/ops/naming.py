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

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from psi_engine.config import Backend, DMeasure
from psi_engine.errors import InputError
from psi_engine.ops import _cuda
from psi_engine.ops.backend import fall_back, in_chunks, memory_budget, resolve_backend
from psi_engine.ops.exact import fold_sum

BLOCKS = (128, 64, 32)
"""Threads a block of the CUDA kernel may have, one per channel."""

_MOST_BLOCKS = 1 << 16
_KEPT = 42  # doubles per thread that 128 registers hold beside the rest: factors and running bests
_AT_ONCE = 5  # clusters, where the factors stay in memory
_STEP = 4  # texts, likewise
_TILE = 24 << 10  # bytes of texts: four blocks share a multiprocessor


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
    backend : {"auto", "torch", "numba", "cuda"}
    memory : int, optional
        Bytes for temporaries of the torch path; the others write nothing but the result.

    Returns
    -------
    Tensor
        float64 (n, sets), the same bits from every backend.

    Raises
    ------
    InputError
        A shape does not fit, or there are fewer than two texts.
    DeviceError
        A backend asked for by name cannot run here, or not at this size.
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
    chosen = resolve_backend(backend, factors)
    n, k, rank = factors.shape
    sets, _, texts = bank.shape
    if 0 in (n, k, rank, sets):
        return torch.zeros(n, sets, dtype=torch.float64, device=factors.device)
    if chosen == "numba":
        from psi_engine.ops import _numba_naming

        return _numba_naming.factored_measure(factors, bank, weights, kind)
    if chosen == "cuda":
        reason = unsupported_reason(k, rank, _cuda.shared_memory_limit(factors.device))
        if reason is None:
            return _launch(factors, bank, weights, kind)
        fall_back(backend, "the naming kernel", reason)
    wide = bank.to(torch.float64).movedim(0, 1).flatten(1)  # (r, sets · texts)

    def run(part: slice) -> Tensor:
        # products of grid numbers: exact in float64, in any order
        found = (factors[part].to(torch.float64).flatten(0, 1) @ wide).unflatten(1, (sets, texts))
        found = found.unflatten(0, (-1, k)).movedim(2, 1)
        return measure(found, weights[part, None].expand(-1, sets, -1), kind)

    budget = memory_budget(factors.device, memory)
    return torch.cat(in_chunks(run, n, 40 * k * sets * texts, budget))


class Launch(NamedTuple):
    """How the CUDA kernel runs.

    clusters : at a time. held : coordinates kept in registers, 0 = none. block : threads.
    tile : texts in shared memory. shared_bytes : dynamic.
    """

    clusters: int
    held: int
    block: int
    tile: int
    shared_bytes: int


def plan(channels: int, k: int, rank: int, texts: int, shared_limit: int) -> Launch | None:
    """The widest block that fits and is not wasted, or None; the layout stands in the kernel."""
    clusters, held = (k, rank) if k * (rank + 3) <= _KEPT else (-(-k // -(-k // _AT_ONCE)), 0)
    whole = -(-texts // _STEP) * _STEP
    for block in BLOCKS:
        state = 20 * k * block
        room = (shared_limit - state) // (8 * rank)
        tile = min(whole, max(32, _TILE // (8 * rank)), room) // _STEP * _STEP
        if tile > 0 and (channels > block // 2 or block == BLOCKS[-1]):
            return Launch(clusters, held, block, tile, state + 8 * rank * tile)
    return None


def unsupported_reason(k: int, rank: int, shared_limit: int) -> str | None:
    """Why the CUDA kernel cannot take clusters and coordinates in this number, or None."""
    if plan(1, k, rank, _STEP, shared_limit) is None:
        return f"{k} clusters of {rank} coordinates do not fit {shared_limit} B shared"
    return None


def kernel_defines(how: Launch, kind: DMeasure) -> dict[str, str]:
    """Macros of the kernel."""
    gap = str(int(kind == "gap"))
    return {"GAP": gap, "CLUSTERS": str(how.clusters), "RANK": str(how.held)}


def kernel_arguments(
    factors: Tensor, bank: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """What the kernel reads: factors (k, r, n) and weights (k, n) in float64, the bank."""
    return (
        factors.to(torch.float64).permute(1, 2, 0).contiguous(),
        bank.to(torch.float32).contiguous(),
        weights.to(torch.float64).T.contiguous(),
    )


def _launch(factors: Tensor, bank: Tensor, weights: Tensor, kind: DMeasure) -> Tensor:
    (n, k, rank), (sets, _, texts), device = factors.shape, bank.shape, factors.device
    how = plan(n, k, rank, texts, _cuda.shared_memory_limit(device))
    assert how is not None  # unsupported_reason has asked
    out = torch.empty(n, sets, dtype=torch.float64, device=device)
    sizes = (np.int32(x) for x in (n, sets, k, rank, texts, how.tile, kind == "contrast"))
    arguments = (*kernel_arguments(factors, bank, weights), out, *sizes)
    grid = min(sets * -(-n // how.block), _MOST_BLOCKS)
    function = _cuda.kernel("naming", kernel_defines(how, kind), device)
    _cuda.launch(function, grid, how.block, arguments, how.shared_bytes, device)
    return out
