"""The silhouette score S: cluster for each k, keep the k that separates best."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from psi_engine.config import Backend, Solver
from psi_engine.errors import InputError
from psi_engine.ops import silhouette as silhouettes
from psi_engine.ops.backend import in_chunks, memory_budget, resolve_backend
from psi_engine.ops.clustering import (
    Starts,
    bytes_per_problem,
    check_problems,
    check_solver,
    prepare,
    solve,
)
from psi_engine.ops.fixed_point import fine, to_grid


class Separability(NamedTuple):
    """Result of :func:`separability`.

    score : float64 (n,) in [0, 1], the best mean silhouette, negatives as 0; NaN where no k fits.
    n_clusters : int64 (n,), k̂; 0 where no k fits.
    assignments : int64 (n, patches), clusters numbered by their first member; −1 where masked
    or where no k fits.
    """

    score: Tensor
    n_clusters: Tensor
    assignments: Tensor


def separability(
    grams: Tensor,
    keys: Tensor,
    *,
    k_min: int = 2,
    k_max: int = 5,
    mask: Tensor | None = None,
    solver: Solver = "hartigan",
    restarts: int = 5,
    backend: Backend = "auto",
    memory: int | None = None,
) -> Separability:
    """Best mean cosine silhouette over k = k_min..k_max of n independent sets of patches.

    Parameters
    ----------
    grams : Tensor, float (n, patches, patches)
        Gram matrices of unit rows.
    keys : Tensor, int64 (n,)
        Randomness of each problem, see :func:`~psi_engine.ops.clustering.cluster`.
    k_min, k_max : int
        Range of k; for each problem k_max is clipped to its valid patches − 1.
    mask : Tensor, bool (n, patches), optional
        False = the patch does not exist.
    solver, restarts, backend, memory
        As in :func:`~psi_engine.ops.clustering.cluster`.

    Returns
    -------
    Separability

    Raises
    ------
    InputError
        A shape, dtype or option is wrong, or an entry is no cosine.

    Notes
    -----
    S = max(0, max_k mean_i s_k(i)), the smallest k on a tie.
    """
    check_problems(grams, keys, mask)
    check_solver(solver, restarts)
    if not 2 <= k_min <= k_max:
        raise InputError("the range of k is empty or starts below 2", got=f"{k_min}..{k_max}")
    chosen = resolve_backend(backend, grams)
    n, patches = grams.shape[:2]
    if chosen == "numba":
        from psi_engine.ops import _numba

        return Separability(*_numba.separability(grams, keys, k_min, k_max, mask, solver, restarts))

    def run(part: slice) -> Separability:
        held = grams[part]
        valid = (
            torch.ones(held.shape[:2], dtype=torch.bool, device=held.device)
            if mask is None
            else mask[part]
        )
        return _search(to_grid(held, valid), valid, keys[part], k_min, k_max, solver, restarts)

    each = bytes_per_problem(patches, min(k_max, patches), restarts)
    parts = in_chunks(run, n, each, memory_budget(grams.device, memory))
    if not parts:
        parts = [run(slice(0, 0))]
    return Separability(*(torch.cat(field) for field in zip(*parts, strict=True)))


def _search(
    grid: Tensor,
    valid: Tensor,
    keys: Tensor,
    k_min: int,
    k_max: int,
    solver: Solver,
    restarts: int,
) -> Separability:
    n, patches, _ = grid.shape
    count = valid.sum(1)
    best = torch.full((n,), torch.nan, dtype=torch.float64, device=grid.device)
    n_clusters = torch.zeros(n, dtype=torch.int64, device=grid.device)
    assignments = torch.full((n, patches), -1, dtype=torch.int64, device=grid.device)
    k_max = min(k_max, patches - 1)
    if n == 0 or k_max < k_min:
        return Separability(best, n_clusters, assignments)
    starts = prepare(grid, valid, keys, k_max, solver, restarts)
    for k in range(k_min, k_max + 1):
        fits = (count > k).nonzero().squeeze(1)
        if not fits.numel():
            continue
        held = grid[fits]
        some = Starts(*(field[fits] for field in starts))
        labels = solve(held, valid[fits], some, k, solver).assignments
        points = silhouettes.of_grid(held, labels, k)
        mean = fine(points.nan_to_num(0.0)).sum(1) / count[fits]
        better = ~(mean <= best[fits])  # the first k meets NaN and wins
        who = fits[better]
        best[who], n_clusters[who], assignments[who] = mean[better], k, labels[better]
    return Separability(best.clamp(min=0), n_clusters, assignments)
