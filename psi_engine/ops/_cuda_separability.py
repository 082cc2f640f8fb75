"""Launch the three forms of ``kernels/separability.cu``, for :mod:`.separability`."""

from __future__ import annotations

from functools import cache
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from psi_engine.ops import _cuda
from psi_engine.ops import silhouette as silhouettes
from psi_engine.ops.blocks import BLOCKS, partitions
from psi_engine.ops.clustering import SEEDING, TOLERANCE
from psi_engine.ops.fixed_point import BOUND, bad_gram, fraction_bits

Kind = Literal["given", "rotated", "pooled"]
"""Where the Gram matrices come from; the last two make them in the kernel."""

GRAM_TYPES = {torch.float32: "float", torch.float64: "double"}

WARPS = (1, 2, 3, 4, 5, 8)
"""Warps a block may have."""

RESIDENT = 20
"""Warps that a multiprocessor holds: the compiler gives each thread registers for so many."""

TILE = 3
"""Rows of the tile of outputs that a thread sums while it rotates: kRows of the kernel."""

_RESERVED = 1 << 10  # bytes of shared memory that the driver takes for each block
_MOST_BLOCKS = 1 << 16


class Launch(NamedTuple):
    """How the kernel runs.

    warps, shared_bytes : of a block, the memory dynamic. tiled : whether the Gram matrix lies in
    shared memory. blocks : how many a multiprocessor holds at once.
    """

    warps: int
    shared_bytes: int
    tiled: bool
    blocks: int


def shared_bytes(patches: int, warps: int, tiled: bool) -> int:
    """Dynamic shared memory of a block; the layout stands at the head of the kernel."""
    doubles = 2 * BLOCKS * patches + (1 << BLOCKS) + 2 * BLOCKS
    warp = -(-(8 * doubles + 4 * 3 * BLOCKS + (2 + BLOCKS) * patches) // 8) * 8
    ints = BLOCKS + patches + (patches + BLOCKS) % 2
    return 8 * patches**2 * tiled + 8 * (patches + BLOCKS) + 4 * ints + warps * warp


def plan(patches: int, shared_limit: int, starts: int, kind: Kind = "given") -> Launch | None:
    """The block with which a multiprocessor works at the most starts, or None: none fits.

    Notes
    -----
    A warp takes one start after the other, so a block of w warps needs ⌈starts/w⌉ turns; more
    warps share one Gram matrix, but fewer blocks fit. On a tie the block with more warps that have
    a start, which leaves less to wait for at the end.
    """
    for tiled in (True,) if kind == "rotated" else (True, False):
        best, most = None, (0.0, 0, 0)
        for warps in WARPS:
            needed = shared_bytes(patches, warps, tiled)
            too_few = kind == "rotated" and -(-patches // TILE) > 32 * warps
            if needed > shared_limit or too_few:
                continue
            blocks = min((shared_limit + _RESERVED) // (needed + _RESERVED), RESIDENT // warps)
            at_work = blocks * starts / -(-starts // warps)
            worth = (at_work, min(warps, starts), -warps)
            if worth > most:
                best, most = Launch(warps, needed, tiled, blocks), worth
        if best is not None:
            return best
    return None


def carveout(how: Launch, shared_limit: int) -> int:
    """Percentage of a multiprocessor's shared memory that the blocks of the plan take.

    The rest stays a cache. Left to itself, the driver may give less to shared memory than all of
    the blocks need.
    """
    return -(-100 * how.blocks * (how.shared_bytes + _RESERVED) // (shared_limit + _RESERVED))


def kernel_defines(how: Launch, dtype: torch.dtype, kind: Kind) -> dict[str, str]:
    """Macros of the kernel."""
    return {
        "GRAM_T": GRAM_TYPES[dtype],
        "WARPS": str(how.warps),
        "TILED": str(int(how.tiled)),
        "ROTATED": str(int(kind == "rotated")),
        "POOLED": str(int(kind == "pooled")),
        "RESIDENT": str(RESIDENT),
        "BLOCKS": str(BLOCKS),
        "BOUND": repr(BOUND),
        "RESOLUTION": repr(silhouettes.RESOLUTION),
        "TOLERANCE": repr(TOLERANCE),
    }


@cache
def partition_table() -> tuple[np.ndarray, np.ndarray]:
    """All partitions of up to BLOCKS blocks, and where those of b blocks into k parts start.

    int64 (partitions,), part j in byte j as the bits of its blocks; int32 (BLOCKS + 1)² + 1.
    """
    held: list[int] = []
    offsets = [0]
    for blocks in range(BLOCKS + 1):
        for k in range(BLOCKS + 1):
            if 1 <= k <= blocks:
                held.extend(
                    sum(part << 8 * j for j, part in enumerate(parts))
                    for parts in partitions(blocks, k)
                )
            offsets.append(len(held))
    return np.array(held, dtype=np.int64), np.array(offsets, dtype=np.int32)


def launch_given(
    grams: Tensor, keys: Tensor, k_min: int, k_max: int, mask: Tensor | None, restarts: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Score, clusters and assignments of Gram matrices, see ``separability``."""
    n, patches = grams.shape[:2]
    valid = torch.ones((n, patches), dtype=torch.uint8, device=grams.device)
    if mask is not None:
        valid.copy_(mask)
    options = (keys, patches, k_min, k_max, restarts)
    return _launch((grams.contiguous(), valid), grams, *options, kind="given")


def launch_rotated(
    rotations: Tensor,
    products: Tensor,
    scale: Tensor,
    shift: float,
    keys: Tensor,
    k_min: int,
    k_max: int,
    restarts: int,
) -> Tensor:
    """Scores (channels, m) of every channel under every rotation, see ``rotated_separability``."""
    tensors = (x.contiguous() for x in (rotations.mT, products, scale))
    sets = (*tensors, np.float64(shift), np.int32(len(rotations)))
    options = (keys.flatten(), products.shape[-1], k_min, k_max, restarts)
    return _launch(sets, products, *options, kind="rotated")[0].reshape(keys.shape)


def launch_pooled(
    rows: Tensor, indices: Tensor, keys: Tensor, k_min: int, k_max: int, restarts: int
) -> tuple[Tensor, Tensor]:
    """Score and mean cosine of sets of rows, see ``pooled_separability``."""
    clarity = torch.empty(len(indices), dtype=torch.float64, device=rows.device)
    sets = (rows.contiguous(), indices.contiguous(), clarity, np.int32(rows.shape[1]))
    options = (keys, indices.shape[1], k_min, k_max, restarts)
    return _launch(sets, rows, *options, kind="pooled")[0], clarity


def _launch(
    sets: tuple[object, ...],
    example: Tensor,
    keys: Tensor,
    patches: int,
    k_min: int,
    k_max: int,
    restarts: int,
    *,
    kind: Kind,
) -> tuple[Tensor, Tensor, Tensor]:
    device, n, labels = example.device, len(keys), kind == "given"
    limit = _cuda.shared_memory_limit(device)
    how = plan(patches, limit, restarts, kind)
    assert how is not None  # unsupported_reason has asked
    grid = min(n, _MOST_BLOCKS)
    workspace: object = np.uintp(0)
    if not how.tiled:  # a block has one matrix there, for one set after the other
        grid = min(n, how.blocks * _cuda.processors(device))
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
    function = _cuda.kernel("separability", kernel_defines(how, example.dtype, kind), device)
    with torch.cuda.device(device):  # CuPy sets it on the current one
        function.preferred_shared_memory_carveout = carveout(how, limit)
    _cuda.launch(function, grid, 32 * how.warps, arguments, how.shared_bytes, device)
    if bool(bad):
        raise bad_gram()
    return score, n_clusters, out
