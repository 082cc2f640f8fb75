"""The silhouette score S: cluster for each k, keep the k that separates best."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from psi_engine.config import Backend, Solver
from psi_engine.errors import InputError
from psi_engine.ops import _cuda
from psi_engine.ops import silhouette as silhouettes
from psi_engine.ops._cuda_separability import (
    GRAM_TYPES,
    Kind,
    launch_given,
    launch_pooled,
    launch_rotated,
    plan,
)
from psi_engine.ops.backend import fall_back, in_chunks, memory_budget, resolve_backend
from psi_engine.ops.blocks import BLOCKS
from psi_engine.ops.clustering import (
    Starts,
    bytes_per_problem,
    check_problems,
    check_solver,
    prepare,
    solve,
)
from psi_engine.ops.exact import clarity_of, gram, near
from psi_engine.ops.fixed_point import fine, to_grid
from psi_engine.ops.rotated_grams import check_rotations, rotated_grams


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
    _check_options(k_min, k_max, solver, restarts)
    chosen = resolve_backend(backend, grams)
    n, patches = grams.shape[:2]
    if chosen == "numba":
        from psi_engine.ops import _numba

        return Separability(*_numba.separability(grams, keys, k_min, k_max, mask, solver, restarts))
    if chosen == "cuda" and n:
        reason = unsupported_reason(grams, patches, k_min, k_max, solver)
        if reason is None:
            return Separability(*launch_given(grams, keys, k_min, k_max, mask, restarts))
        fall_back(backend, "the separability kernel", reason)

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


def rotated_separability(
    rotations: Tensor,
    products: Tensor,
    scale: Tensor,
    shift: float,
    keys: Tensor,
    *,
    k_min: int = 2,
    k_max: int = 5,
    solver: Solver = "hartigan",
    restarts: int = 5,
    backend: Backend = "auto",
    memory: int | None = None,
) -> Tensor:
    """Scores of :func:`separability` for every channel under every rotation.

    Parameters
    ----------
    rotations, products, scale, shift
        As in :func:`~psi_engine.ops.rotated_grams.rotated_grams`: (m, n, n), (channels, n, n),
        (channels,).
    keys : Tensor, int64 (channels, m)
        Randomness of each problem.
    k_min, k_max, solver, restarts, backend, memory
        As in :func:`separability`.

    Returns
    -------
    Tensor
        float64 (channels, m). On CUDA the Gram matrices are made in shared memory and never
        written.

    Raises
    ------
    InputError
        A shape, dtype or option is wrong.
    """
    check_rotations(rotations, products, scale)
    shape = (len(products), len(rotations))
    if keys.shape != shape or keys.dtype != torch.int64:
        raise InputError(
            "keys do not fit products and rotations",
            got=f"{tuple(keys.shape)} {keys.dtype}",
            expected=f"{shape} torch.int64",
        )
    _check_options(k_min, k_max, solver, restarts)
    if not keys.numel():
        return torch.empty(shape, dtype=torch.float64, device=products.device)
    if resolve_backend(backend, products) == "cuda":
        reason = unsupported_reason(
            products, products.shape[-1], k_min, k_max, solver, kind="rotated"
        )
        if reason is None:
            sets = (rotations, products, scale)
            return launch_rotated(*sets, shift, keys, k_min, k_max, restarts)
        fall_back(backend, "the separability kernel on rotated sets", reason)

    def run(part: slice) -> Tensor:
        grams = rotated_grams(rotations, products[part], scale[part], shift, backend=backend)
        found = separability(
            grams.flatten(0, 1),
            keys[part].flatten(),
            k_min=k_min,
            k_max=k_max,
            solver=solver,
            restarts=restarts,
            backend=backend,
            memory=memory,
        )
        return found.score.unflatten(0, (-1, shape[1]))

    each = 64 * products.shape[-1] ** 2 * max(1, shape[1])
    parts = in_chunks(run, shape[0], each, memory_budget(products.device, memory))
    return torch.cat(parts)


class PooledSeparability(NamedTuple):
    """Result of :func:`pooled_separability`.

    score : float64 (n,), as in :class:`Separability`.
    clarity : float64 (n,) in [-1, 1], mean cosine of two different patches of the set.
    """

    score: Tensor
    clarity: Tensor


def pooled_separability(
    rows: Tensor,
    indices: Tensor,
    keys: Tensor,
    *,
    k_min: int = 2,
    k_max: int = 5,
    solver: Solver = "hartigan",
    restarts: int = 5,
    backend: Backend = "auto",
    memory: int | None = None,
) -> PooledSeparability:
    """Scores of :func:`separability`, and mean cosines, of sets of rows of one pool.

    Parameters
    ----------
    rows : Tensor, float32 (rows, dim)
        Unit rows on the grid, from :func:`~psi_engine.ops.exact.unit_rows`.
    indices : Tensor, int64 (n, patches)
        The rows of each set.
    keys : Tensor, int64 (n,)
        Randomness of each problem.
    k_min, k_max, solver, restarts, backend, memory
        As in :func:`separability`.

    Returns
    -------
    PooledSeparability
        On CUDA the Gram matrices are made in shared memory and never written.

    Raises
    ------
    InputError
        A shape, dtype, index or option is wrong.

    Notes
    -----
    The Gram matrices have the bits of :func:`~psi_engine.ops.exact.gram`: their sums are exact.
    """
    _check_pooled(rows, indices, keys)
    _check_options(k_min, k_max, solver, restarts)
    n, patches = indices.shape
    if not n:
        none = torch.empty(0, dtype=torch.float64, device=rows.device)
        return PooledSeparability(none, none.clone())
    if resolve_backend(backend, rows) == "cuda":
        reason = unsupported_reason(rows, patches, k_min, k_max, solver, kind="pooled")
        if reason is None:
            return PooledSeparability(*launch_pooled(rows, indices, keys, k_min, k_max, restarts))
        fall_back(backend, "the separability kernel on sets of a pool", reason)

    def run(part: slice) -> PooledSeparability:
        together = near(rows, patches * rows.shape[1])
        grams = torch.cat([gram(rows[some]) for some in indices[part].split(together)])
        found = separability(
            grams,
            keys[part],
            k_min=k_min,
            k_max=k_max,
            solver=solver,
            restarts=restarts,
            backend=backend,
            memory=memory,
        )
        return PooledSeparability(found.score, clarity_of(grams))

    parts = in_chunks(run, n, 64 * patches**2, memory_budget(rows.device, memory))
    return PooledSeparability(*(torch.cat(field) for field in zip(*parts, strict=True)))


def _check_options(k_min: int, k_max: int, solver: Solver, restarts: int) -> None:
    check_solver(solver, restarts)
    if not 2 <= k_min <= k_max:
        raise InputError("the range of k is empty or starts below 2", got=f"{k_min}..{k_max}")


def _check_pooled(rows: Tensor, indices: Tensor, keys: Tensor) -> None:
    if rows.ndim != 2 or rows.dtype != torch.float32:
        raise InputError(
            "rows must be (rows, dim) and float32",
            got=f"{tuple(rows.shape)} {rows.dtype}",
            fix="normalise the embeddings with ops.exact.unit_rows",
        )
    if indices.ndim != 2 or indices.dtype != torch.int64:
        raise InputError(
            "indices must be (n, patches) and int64", got=f"{tuple(indices.shape)} {indices.dtype}"
        )
    if keys.shape != indices.shape[:1] or keys.dtype != torch.int64:
        raise InputError(
            "keys do not fit indices",
            got=f"{tuple(keys.shape)} {keys.dtype}",
            expected=f"({len(indices)},) torch.int64",
        )
    if indices.numel():
        least, most = (int(x) for x in indices.aminmax())
        if least < 0 or most >= len(rows):
            raise InputError(
                "indices point outside the rows",
                got=f"{least} to {most}",
                expected=f"0 to {len(rows) - 1}",
            )


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


def unsupported_reason(
    sets: Tensor, patches: int, k_min: int, k_max: int, solver: Solver, kind: Kind = "given"
) -> str | None:
    """Why the CUDA kernel cannot take sets of so many patches, or None when it can."""
    if solver != "hartigan":
        return f"it solves by Hartigan's moves, not by {solver}"
    if k_max > BLOCKS:
        return f"it takes k up to {BLOCKS}, not {k_max}"
    if sets.dtype not in GRAM_TYPES:
        return f"it takes float32 or float64, not {sets.dtype}"
    limit = _cuda.shared_memory_limit(sets.device)
    if plan(patches, limit, 1, kind) is None:
        return f"{patches} patches do not fit {limit} B shared"
    return None
