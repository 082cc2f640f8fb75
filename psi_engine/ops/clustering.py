"""Cosine K-means of many small problems at once, in Gram space.

The objective is Σ_j ‖Σ_{i∈C_j} z_i‖ = Σ_j √(h_j' G h_j) with G = ZZ' and h_j the indicator of
cluster j, so nothing larger than K × K is touched. All sums are exact (see
:mod:`psi_engine.ops.fixed_point`): torch on the CPU, torch on CUDA and numba give the same
assignments, bit for bit, whatever the batch.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from psi_engine.config import Backend, Solver
from psi_engine.errors import InputError
from psi_engine.ops.backend import in_chunks, memory_budget, resolve_backend
from psi_engine.ops.blocks import BLOCKS, best_partition
from psi_engine.ops.fixed_point import fine, fraction_bits, to_grid
from psi_engine.ops.random import string_key, uniform

SEEDING = string_key("ops.clustering.seeding")
"""Separates the draws of the seeding from others made with the same keys."""

TOLERANCE = 1e-11
"""A move must gain more than this: above the rounding of the square roots, far below the data."""

MOVES_PER_CHECK = 8
"""Moves between two looks at which problems are done: a look waits for the GPU."""

LLOYD_STEPS = 100
"""Lloyd stops here if ties keep it from settling."""


class Clustering(NamedTuple):
    """Result of :func:`cluster`.

    assignments : int64 (n, patches), clusters numbered by their first member, −1 where masked.
    objective : float64 (n,), Σ_j ‖Σ_{i∈C_j} z_i‖.
    """

    assignments: Tensor
    objective: Tensor


def cluster(
    grams: Tensor,
    keys: Tensor,
    k: int,
    *,
    mask: Tensor | None = None,
    solver: Solver = "hartigan",
    restarts: int = 5,
    backend: Backend = "auto",
    memory: int | None = None,
) -> Clustering:
    """Cosine K-means of n independent sets of patches.

    Parameters
    ----------
    grams : Tensor, float (n, patches, patches)
        Gram matrices of unit rows.
    keys : Tensor, int64 (n,)
        Randomness of each problem; equal keys and Gram matrices give equal results.
    k : int
        Clusters, at least 1 and at most the number of valid patches of every problem.
    mask : Tensor, bool (n, patches), optional
        False = the patch does not exist.
    solver : {"hartigan", "lloyd"}
        Single-point moves until none improves, or batch reassignment to the nearest centroid.
    restarts : int
        Greedy k-means++ seedings; the best objective is kept, the first on ties.
    backend : {"auto", "torch", "numba", "cuda"}
        ``cuda`` runs in torch on the GPU: this operation has no kernel of its own.
    memory : int, optional
        Bytes for temporaries.

    Returns
    -------
    Clustering

    Raises
    ------
    InputError
        A shape, dtype or option is wrong, or a problem has fewer than k valid patches.

    Notes
    -----
    Hartigan forms ``BLOCKS`` clusters from as many seeds, unites them into k clusters in the
    best of all ways, and makes the best single-point move until none gains: moves of one point
    cannot carry a tight group, unions of blocks can. For k > ``BLOCKS``, and for Lloyd, the k
    clusters start from k seeds.
    Exactly k non-empty clusters always: a seed stays in its own cluster, a move never empties
    one, and Lloyd refills an emptied cluster with the point farthest from its centroid.
    A seed is drawn with probability proportional to its squared distance to the nearest seed,
    the best of 2 + ⌊ln j⌋ candidates for seed j; the seeds for k are the first k of those
    for k + 1.

    References
    ----------
    Hartigan, *Clustering Algorithms* (1975). Telgarsky, Vattani, "Hartigan's method: k-means
    clustering without Voronoi", AISTATS 2010. Arthur, Vassilvitskii, "k-means++", SODA 2007
    (greedy variant: section 5).
    """
    check_problems(grams, keys, mask)
    check_solver(solver, restarts)
    if k < 1:
        raise InputError("k is too small", got=k, expected="at least 1")
    fewest = grams.shape[1] if mask is None else int(mask.sum(1).min()) if len(mask) else k
    if k > fewest:
        raise InputError(
            "k exceeds the valid patches of a problem", got=f"k = {k}", expected=f"at most {fewest}"
        )
    chosen = resolve_backend(backend, grams)
    n, patches = grams.shape[:2]
    if n == 0:
        return Clustering(
            torch.empty(0, patches, dtype=torch.int64, device=grams.device),
            torch.empty(0, dtype=torch.float64, device=grams.device),
        )
    if chosen == "numba":
        from psi_engine.ops import _numba

        return Clustering(*_numba.cluster(grams, keys, k, mask, solver, restarts))

    def run(part: slice) -> Clustering:
        valid = _valid(grams[part], mask, part)
        grid = to_grid(grams[part], valid)
        starts = prepare(grid, valid, keys[part], k, solver, restarts)
        return solve(grid, valid, starts, k, solver)

    each = bytes_per_problem(patches, k, restarts)
    parts = in_chunks(run, n, each, memory_budget(grams.device, memory))
    return Clustering(*(torch.cat(field) for field in zip(*parts, strict=True)))


def check_problems(grams: Tensor, keys: Tensor | None, mask: Tensor | None) -> None:
    """Refuse Gram matrices, keys or a mask of the wrong rank, shape or dtype."""
    shape = tuple(grams.shape)
    if grams.ndim != 3 or shape[1] != shape[2] or not grams.is_floating_point():
        raise InputError(
            "grams must be (n, patches, patches) and floating",
            got=f"{shape} {grams.dtype}",
            fix="compute them as embeddings @ embeddings.mT",
        )
    if keys is not None and (keys.shape != shape[:1] or keys.dtype != torch.int64):
        raise InputError(
            "keys do not fit grams",
            got=f"{tuple(keys.shape)} {keys.dtype}",
            expected=f"({shape[0]},) torch.int64",
        )
    if mask is not None and (mask.shape != shape[:2] or mask.dtype != torch.bool):
        raise InputError(
            "mask does not fit grams",
            got=f"{tuple(mask.shape)} {mask.dtype}",
            expected=f"{shape[:2]} torch.bool",
        )


def check_solver(solver: str, restarts: int) -> None:
    """Refuse an unknown solver or no restarts."""
    if solver not in ("hartigan", "lloyd"):
        raise InputError("unknown solver", got=repr(solver), expected="hartigan or lloyd")
    if restarts < 1:
        raise InputError("restarts is too small", got=restarts, expected="at least 1")


def bytes_per_problem(patches: int, k: int, restarts: int) -> int:
    """Bytes of temporaries the torch path needs for one problem."""
    blocks = 2048 if k <= BLOCKS else 0  # doubles: the lengths of all subsets, all partitions
    wide = max(k, BLOCKS)
    return 8 * (4 * patches * patches + restarts * (patches * (6 * wide + 12) + blocks))


def _valid(grams: Tensor, mask: Tensor | None, part: slice) -> Tensor:
    if mask is None:
        return torch.ones(grams.shape[:2], dtype=torch.bool, device=grams.device)
    return mask[part]


class Starts(NamedTuple):
    """Where the restarts begin, for every k: from :func:`prepare`.

    centres : int64 (n, restarts, seeds)
    blocks : int64 (n, restarts, patches), a clustering into at most BLOCKS; empty for Lloyd.
    within : float64 (n, restarts, blocks, blocks), their B'GB; empty for Lloyd.
    filled : bool (n, restarts, blocks), false where there are fewer patches than blocks.
    """

    centres: Tensor
    blocks: Tensor
    within: Tensor
    filled: Tensor


def prepare(
    grid: Tensor, valid: Tensor, keys: Tensor, k_max: int, solver: Solver, restarts: int
) -> Starts:
    """Draw the seeds for k up to k_max; for Hartigan form the blocks too.

    Parameters
    ----------
    grid : Tensor, float64 (n, patches, patches), from :func:`~fixed_point.to_grid`
    valid : Tensor, bool (n, patches)
    keys : Tensor, int64 (n,)
    """
    if solver == "lloyd":
        centres = seed(grid, valid, keys, k_max, restarts)
        none = centres[..., :0]
        return Starts(centres, none, none.double().unsqueeze(-1), none.bool())
    most = min(BLOCKS, grid.shape[1])
    centres = seed(grid, valid, keys, max(k_max, most), restarts)
    labels = nearest(grid, centres[..., :most]).masked_fill(~valid.unsqueeze(1), -1)
    labels, _ = _hartigan(grid, labels, most)
    inside = members(labels, most)
    within = (inside.reshape(len(grid), -1, grid.shape[1]) @ grid).reshape(inside.shape) @ inside.mT
    return Starts(centres, labels, within, inside.any(-1))


def solve(grid: Tensor, valid: Tensor, starts: Starts, k: int, solver: Solver) -> Clustering:
    """Cluster Gram matrices that are on the grid already, in torch; see :func:`prepare`."""
    if solver == "hartigan" and k <= BLOCKS:
        of_block = best_partition(starts.within, starts.filled, k)
        labels = of_block.gather(-1, starts.blocks.clamp(min=0))
    else:
        labels = nearest(grid, starts.centres[..., :k])
    labels = labels.masked_fill(~valid.unsqueeze(1), -1)
    labels, quadratic = (_hartigan if solver == "hartigan" else _lloyd)(grid, labels, k)
    objective = fine(quadratic.clamp(min=0).sqrt()).sum(-1)  # (n, restarts)
    best = objective.argmax(1, keepdim=True)
    chosen = labels.gather(1, best.unsqueeze(-1).expand(-1, -1, labels.shape[-1])).squeeze(1)
    return Clustering(canonical(chosen, k), objective.gather(1, best).squeeze(1))


def seed(grid: Tensor, valid: Tensor, keys: Tensor, k: int, restarts: int) -> Tensor:
    """Greedy k-means++ seeds: int64 (n, restarts, k), distinct patches."""
    n, patches, _ = grid.shape
    quantum = 2.0 ** -fraction_bits(patches)
    draw = (keys[:, None], SEEDING, torch.arange(restarts, device=grid.device))  # (n, restarts)
    rank_of = valid.cumsum(1)
    rank = (uniform(*draw, 0, 0) * rank_of[:, -1:]).floor().to(torch.int64)
    first = torch.searchsorted(rank_of, rank.minimum(rank_of[:, -1:] - 1), right=True)
    centres = [first]
    chosen = torch.zeros(n, restarts, patches, dtype=torch.bool, device=grid.device)
    closest = _distances(grid, first, valid)  # (n, restarts, patches)
    for j in range(1, k):
        chosen.scatter_(2, centres[-1].unsqueeze(-1), True)
        trials = torch.arange(2 + int(math.log(j + 1)), device=grid.device)
        up_to = closest.cumsum(-1)
        total = up_to[..., -1:]
        at = uniform(*(x.unsqueeze(-1) if isinstance(x, Tensor) else x for x in draw), j, trials)
        at = torch.minimum(at * total, total - quantum)
        tried = torch.searchsorted(up_to, at, right=True).clamp_(max=patches - 1)
        after = torch.minimum(closest.unsqueeze(2), _distances(grid, tried, valid))
        best = after.sum(-1).argmin(-1, keepdim=True)  # (n, restarts, 1)
        pick = tried.gather(2, best).squeeze(-1)
        # Every patch coincides with a seed: take the first one that is not a seed itself.
        spare = (valid.unsqueeze(1) & ~chosen).to(torch.uint8).argmax(-1)
        pick = torch.where(total.squeeze(-1) > 0, pick, spare)
        closest = torch.minimum(closest, _distances(grid, pick, valid))
        centres.append(pick)
    return torch.stack(centres, dim=-1)


def nearest(grid: Tensor, centres: Tensor) -> Tensor:
    """Label each patch with its nearest seed, each seed with itself: int64 (n, restarts, K)."""
    k = centres.shape[-1]
    everywhere = torch.ones(grid.shape[:2], dtype=torch.bool, device=grid.device)
    labels = _distances(grid, centres, everywhere).argmin(2)
    for j in reversed(range(k)):  # a patch drawn twice, where seeds outnumber patches: the first
        labels.scatter_(2, centres[..., j : j + 1], j)
    return labels


def _distances(grid: Tensor, centres: Tensor, valid: Tensor) -> Tensor:
    """Squared distances of all patches to centres (n, ...): (n, ..., patches), 0 where invalid."""
    n, patches, _ = grid.shape
    flat = centres.reshape(n, -1)
    rows = grid.gather(1, flat.unsqueeze(-1).expand(-1, -1, patches))
    norms = grid.diagonal(dim1=1, dim2=2)
    squared = norms.unsqueeze(1) + norms.gather(1, flat).unsqueeze(-1) - 2 * rows
    return (squared.clamp_(min=0) * valid.unsqueeze(1)).reshape(*centres.shape, patches)


def members(labels: Tensor, k: int) -> Tensor:
    """Indicator of each cluster: float64 (..., k, patches); label −1 is in none."""
    return (labels.unsqueeze(-2) == torch.arange(k, device=labels.device)[:, None]).double()


def _sums(grid: Tensor, labels: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """Per problem and restart: G h_j (n, r, k, K), h_j'G h_j (n, r, k), sizes (n, r, k)."""
    n, restarts, patches = labels.shape
    inside = members(labels, k)
    sums = (inside.reshape(n, restarts * k, patches) @ grid).reshape(inside.shape)
    return sums, (sums * inside).sum(-1), inside.sum(-1)


def _hartigan(grid: Tensor, labels: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Make the best single-point move of each problem until none gains anything."""
    n, restarts, patches = labels.shape
    sums, quadratic, sizes = _sums(grid, labels, k)
    done_labels, done_quadratic = labels.reshape(-1, patches), quadratic.reshape(-1, k)
    active = torch.arange(n * restarts, device=grid.device)
    state = (
        done_labels.clone(),
        done_quadratic.clone(),
        sizes.reshape(-1, k),
        sums.reshape(-1, k, patches),
    )
    while active.numel():
        owner = active // restarts
        for _ in range(MOVES_PER_CHECK):
            moved = _move(grid, owner, *state)
        done_labels[active], done_quadratic[active] = state[0], state[1]
        keep = moved.nonzero().squeeze(1)
        active = active[keep]
        state = tuple(x[keep] for x in state)  # type: ignore[assignment]
    return done_labels.reshape(n, restarts, patches), done_quadratic.reshape(n, restarts, k)


def _move(
    grid: Tensor, owner: Tensor, labels: Tensor, quadratic: Tensor, sizes: Tensor, sums: Tensor
) -> Tensor:
    """Move one patch of each problem, in place; returns which moved, bool (N,)."""
    rows = torch.arange(len(owner), device=grid.device)
    norms = grid.diagonal(dim1=1, dim2=2)[owner]
    home = labels.clamp(min=0)
    own = members(labels, sums.shape[1]).bool()  # (N, k, patches)
    after = quadratic.unsqueeze(-1) + torch.where(own, -2 * sums, 2 * sums) + norms.unsqueeze(1)
    change = after.clamp_(min=0).sqrt_() - quadratic.clamp(min=0).sqrt().unsqueeze(-1)
    loss = -change.gather(1, home.unsqueeze(1)).squeeze(1)
    change.masked_fill_(own, -torch.inf)
    target = change.argmax(1)
    gain = change.gather(1, target.unsqueeze(1)).squeeze(1) - loss
    gain = gain.masked_fill((labels < 0) | (sizes.gather(1, home) <= 1), -torch.inf)
    at = gain.argmax(1, keepdim=True)
    go = gain.gather(1, at).squeeze(1) > TOLERANCE
    old, new, at = home.gather(1, at).squeeze(1), target.gather(1, at).squeeze(1), at.squeeze(1)
    once, norm = go.double(), norms[rows, at]
    quadratic[rows, old] += (norm - 2 * sums[rows, old, at]) * once
    quadratic[rows, new] += (norm + 2 * sums[rows, new, at]) * once
    step = grid[owner, at] * once.unsqueeze(-1)
    sums[rows, old] -= step
    sums[rows, new] += step
    sizes[rows, old] -= once
    sizes[rows, new] += once
    labels[rows, at] = torch.where(go, new, labels[rows, at])
    return go


def _lloyd(grid: Tensor, labels: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Reassign all patches to the nearest centroid direction until nothing changes."""
    for _ in range(LLOYD_STEPS):
        sums, quadratic, _ = _sums(grid, labels, k)
        length = quadratic.clamp(min=0).sqrt().clamp(min=TOLERANCE)
        cosine = sums / length.unsqueeze(-1)  # (n, restarts, k, patches)
        home = labels.clamp(min=0).unsqueeze(2)
        best = cosine.argmax(2, keepdim=True)
        better = cosine.gather(2, best) - cosine.gather(2, home) > TOLERANCE
        new = torch.where(better, best, home).squeeze(2).masked_fill(labels < 0, -1)
        new = _refill(new, cosine, k)
        if torch.equal(new, labels):
            break
        labels = new
    return labels, _sums(grid, labels, k)[1]


def _refill(labels: Tensor, cosine: Tensor, k: int) -> Tensor:
    """Give each emptied cluster the patch farthest from its centroid that is not alone there."""
    for j in range(k):
        sizes = members(labels, k).sum(-1)
        empty = sizes[..., j : j + 1] == 0
        if not bool(empty.any()):
            continue
        home = labels.clamp(min=0)
        own = cosine.gather(2, home.unsqueeze(2)).squeeze(2)
        movable = (labels >= 0) & (sizes.gather(2, home) > 1)
        far = own.masked_fill(~movable, torch.inf).argmin(2, keepdim=True)
        labels = torch.where(empty, labels.scatter(2, far, j), labels)
    return labels


def canonical(labels: Tensor, k: int) -> Tensor:
    """Renumber the clusters of each row by their first member; −1 stays."""
    first = members(labels, k).argmax(-1)
    rank = first.argsort(-1).argsort(-1)
    return rank.gather(-1, labels.clamp(min=0)).masked_fill(labels < 0, -1)
