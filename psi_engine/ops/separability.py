"""The silhouette score S: cluster for each k, keep the k that separates best."""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from psi_engine.config import Backend, Solver
from psi_engine.errors import InputError
from psi_engine.ops import _cuda
from psi_engine.ops import silhouette as silhouettes
from psi_engine.ops.backend import fall_back, in_chunks, memory_budget, resolve_backend
from psi_engine.ops.blocks import BLOCKS, partitions
from psi_engine.ops.clustering import (
    SEEDING,
    TOLERANCE,
    Starts,
    bytes_per_problem,
    check_problems,
    check_solver,
    prepare,
    solve,
)
from psi_engine.ops.fixed_point import BOUND, bad_gram, fine, fraction_bits, to_grid
from psi_engine.ops.rotated_grams import check_rotations, rotated_grams

WARPS = (4, 2, 1)
"""Warps a block of the CUDA kernel may have: the first that fits is taken."""

_GRAM_TYPES = {torch.float32: "float", torch.float64: "double"}
_MOST_BLOCKS = 1 << 16
_BLOCKS_PER_PROCESSOR = 4  # where the Gram matrix lies in global memory


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
    if chosen == "cuda" and n:
        reason = unsupported_reason(grams, k_min, k_max, solver)
        if reason is None:
            return _launch(grams, keys, k_min, k_max, mask, restarts)
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
    check_solver(solver, restarts)
    if not keys.numel():
        return torch.empty(shape, dtype=torch.float64, device=products.device)
    if resolve_backend(backend, products) == "cuda":
        reason = unsupported_reason(products, k_min, k_max, solver, rotated=True)
        if reason is None:
            sets = (rotations, products, scale)
            return _launch_rotated(*sets, shift, keys, k_min, k_max, restarts)
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


class Launch(NamedTuple):
    """How the CUDA kernel runs: warps, dynamic shared bytes, where the Gram matrix lies."""

    warps: int
    shared_bytes: int
    tiled: bool


def plan(patches: int, shared_limit: int, rotated: bool = False) -> Launch | None:
    """The widest block that fits, or None; the layout stands at the head of the kernel."""
    doubles = (2 * BLOCKS + 1) * patches + (1 << BLOCKS) + 2 * BLOCKS
    warp = -(-(8 * doubles + 4 * 3 * BLOCKS + (2 + BLOCKS) * patches) // 8) * 8
    ints = BLOCKS + patches + (patches + BLOCKS) % 2
    for tiled in (True,) if rotated else (True, False):
        for warps in WARPS:
            area = max(warps * warp, 8 * patches * (patches | 1) if rotated else 0)
            needed = 8 * patches**2 * tiled + 8 * BLOCKS + 4 * ints + area
            if needed <= shared_limit:
                return Launch(warps, needed, tiled)
    return None


def unsupported_reason(
    sets: Tensor, k_min: int, k_max: int, solver: Solver, *, rotated: bool = False
) -> str | None:
    """Why the CUDA kernel cannot take these Gram matrices or products, or None when it can."""
    if solver != "hartigan":
        return f"it solves by Hartigan's moves, not by {solver}"
    if k_max > BLOCKS:
        return f"it takes k up to {BLOCKS}, not {k_max}"
    if sets.dtype not in _GRAM_TYPES:
        return f"it takes float32 or float64, not {sets.dtype}"
    limit = _cuda.shared_memory_limit(sets.device)
    if plan(sets.shape[-1], limit, rotated) is None:
        return f"{sets.shape[-1]} patches do not fit {limit} B shared"
    return None


def kernel_defines(how: Launch, dtype: torch.dtype, rotated: bool) -> dict[str, str]:
    """Macros of the kernel."""
    return {
        "GRAM_T": _GRAM_TYPES[dtype],
        "WARPS": str(how.warps),
        "TILED": str(int(how.tiled)),
        "ROTATED": str(int(rotated)),
        "BLOCKS": str(BLOCKS),
        "BOUND": repr(BOUND),
        "RESOLUTION": repr(silhouettes.RESOLUTION),
        "TOLERANCE": repr(TOLERANCE),
    }


@cache
def partition_table() -> tuple[np.ndarray, np.ndarray]:
    """All partitions of up to BLOCKS blocks, and where those of b blocks into k parts start.

    uint8 (bytes,), each part as the bits of its blocks; int32 (BLOCKS + 1)² + 1, offsets.
    """
    held: list[int] = []
    offsets = [0]
    for blocks in range(BLOCKS + 1):
        for k in range(BLOCKS + 1):
            if 1 <= k <= blocks:
                held.extend(part for parts in partitions(blocks, k) for part in parts)
            offsets.append(len(held))
    return np.array(held, dtype=np.uint8), np.array(offsets, dtype=np.int32)


def _launch(
    grams: Tensor, keys: Tensor, k_min: int, k_max: int, mask: Tensor | None, restarts: int
) -> Separability:
    n, patches = grams.shape[:2]
    valid = torch.ones((n, patches), dtype=torch.uint8, device=grams.device)
    if mask is not None:
        valid.copy_(mask)
    sets = (grams.contiguous(), valid)
    found, bad = _run(sets, grams, keys, k_min, k_max, restarts, rotated=False, labels=True)
    if bool(bad):
        raise bad_gram()
    return found


def _launch_rotated(
    rotations: Tensor,
    products: Tensor,
    scale: Tensor,
    shift: float,
    keys: Tensor,
    k_min: int,
    k_max: int,
    restarts: int,
) -> Tensor:
    tensors = (x.contiguous() for x in (rotations, products, scale))
    sets = (*tensors, np.float64(shift), np.int32(len(rotations)))
    flat = keys.flatten()
    found, bad = _run(sets, products, flat, k_min, k_max, restarts, rotated=True, labels=False)
    if bool(bad):
        raise bad_gram()
    return found.score.reshape(keys.shape)


def _run(
    sets: tuple[object, ...],
    example: Tensor,
    keys: Tensor,
    k_min: int,
    k_max: int,
    restarts: int,
    *,
    rotated: bool,
    labels: bool,
) -> tuple[Separability, Tensor]:
    device, patches, n = example.device, example.shape[-1], len(keys)
    how = plan(patches, _cuda.shared_memory_limit(device), rotated)
    assert how is not None  # unsupported_reason has asked
    grid = min(n, _MOST_BLOCKS)
    workspace: object = np.uintp(0)
    if not how.tiled:
        processors = torch.cuda.get_device_properties(device).multi_processor_count
        grid = min(n, _BLOCKS_PER_PROCESSOR * processors)
        workspace = torch.empty(grid * patches**2, dtype=torch.float64, device=device)
    score = torch.empty(n, dtype=torch.float64, device=device)
    n_clusters = torch.empty(n, dtype=torch.int64, device=device)
    out = torch.empty(n if labels else 0, patches, dtype=torch.int64, device=device)
    bad = torch.zeros(1, dtype=torch.int32, device=device)
    table, offsets = (torch.from_numpy(x).to(device) for x in partition_table())
    scale = 2.0 ** fraction_bits(patches)
    arguments = (
        *sets,
        keys.contiguous(),
        table,
        offsets,
        workspace,
        score,
        n_clusters,
        out if labels else np.uintp(0),
        bad,
        *(np.int32(x) for x in (n, patches, k_min, k_max, restarts)),
        np.uint64(SEEDING & (2**64 - 1)),
        np.float64(scale),
        np.float64(1 / scale),
    )
    dtype = torch.float64 if rotated else example.dtype
    function = _cuda.kernel("separability", kernel_defines(how, dtype, rotated), device)
    _cuda.launch(function, grid, 32 * how.warps, arguments, how.shared_bytes, device)
    return Separability(score, n_clusters, out), bad
