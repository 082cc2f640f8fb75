"""One batch of activations into sorted buffers of both ends, and its statistics, in one pass."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from psi_engine.config import Backend
from psi_engine.errors import InputError
from psi_engine.ops import _cuda, topk
from psi_engine.ops.backend import fall_back, resolve_backend
from psi_engine.ops.moments import LIMBS, Moments, batch_moments
from psi_engine.ops.topk import Entries

BLOCK = 256
"""Threads of a block of the CUDA kernel; each of its warps takes an image at a time."""

_FORMATS = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}
_STAGED = 4096  # survivors of both ends that a block has room for, over its channels


def survey(
    x: Tensor,
    image_ids: Tensor,
    top: Entries,
    bottom: Entries,
    *,
    sites_per_group: int,
    fresh: bool,
    backend: Backend = "auto",
) -> tuple[Entries, Entries, Moments]:
    """Keep a batch's best sites at both ends, and sum up its finite ones.

    Parameters
    ----------
    x : Tensor, float (batch, channels, sites)
        Of any strides: a kernel reads channels-last maps as they are.
    image_ids : Tensor, int64 (batch,)
        Distinct, on x's device.
    top, bottom : Entries (channels, k)
        Sorted; the bottom holds the top of −x. Width 0 = not wanted. The kernel works in place.
    sites_per_group : int
        1 = every site for itself; the number of sites = only the best one of each image.
    fresh : bool
        The images ascend and come after all that the buffers hold. Others are merged in torch
        on every backend.
    backend : {"auto", "torch", "cuda"}
        The loops of numba are called by the miner itself: they keep its random sites too.

    Returns
    -------
    tuple of Entries, Entries and Moments
        The buffers with the batch in them, and the statistics of the batch alone.

    Raises
    ------
    DeviceError
        The backend was named and cannot run here.
    InputError
        The backend is numba.
    """
    if backend == "numba":
        raise InputError("survey has no numba path", expected="auto, torch or cuda")
    if resolve_backend(backend, x) == "cuda" and fresh:
        reason = unsupported_reason(x, max(top.keys.shape[1], bottom.keys.shape[1]))
        if reason is None:
            return top, bottom, _launch(x, image_ids, top, bottom, sites_per_group > 1)
        fall_back(backend, "the survey kernel", reason)
    x = x.to(torch.float32)
    moments, finite = batch_moments(x)

    def keep(kept: Entries, keys: Tensor) -> Entries:
        k = kept.keys.shape[1]
        if not k:
            return kept
        if finite is not None:
            keys = torch.where(finite, keys, -torch.inf)
        if sites_per_group > 1:
            best = topk.best_of_images(keys, image_ids)
        else:
            best = topk.best_of_batch(keys + 0.0, image_ids, k)
        return topk.append(kept, best) if fresh else topk.merge(kept, best, k, sites_per_group)

    return keep(top, x), keep(bottom, -x), moments


class Launch(NamedTuple):
    """How the CUDA kernel runs: macros, channels per block, dynamic shared memory in bytes."""

    defines: dict[str, str]
    tile: int
    shared_bytes: int


def plan(x: Tensor, k: int) -> Launch:
    """Rows of sites where these lie together, else sectors of channels."""
    rows = x.shape[2] > 1 and x.stride(2) <= x.stride(1)
    tile = 1 if rows else 32 // x.element_size()
    capacity = _STAGED // (2 * tile)
    shared = 16 * tile * capacity + 16 * tile * LIMBS + 16 * tile  # staged, sums, counters
    shared += 16 * tile + 8 * k + 8 * tile + 4 * k + 16 * tile  # borders, merged, counts, extremes
    defines = {
        "FORMAT": str(_FORMATS[x.dtype]),
        "TILE": str(tile),
        "BLOCK": str(BLOCK),
        "CAPACITY": str(capacity),
        "LIMBS": str(LIMBS),
    }
    return Launch(defines, tile, shared)


def unsupported_reason(x: Tensor, k: int) -> str | None:
    """Why the CUDA kernel cannot take this batch, or None when it can."""
    if x.dtype not in _FORMATS:
        return f"it takes float32, float16 or bfloat16, not {x.dtype}"
    if x.shape[0] * x.shape[2] >= 1 << 32:
        return f"{x.shape[0]} images of {x.shape[2]} sites exceed 32 bits"
    needed, there = plan(x, k).shared_bytes, _cuda.shared_memory_limit(x.device)
    if needed > there:
        return f"{k} sites of a channel need {needed} B shared, {there} are there"
    return None


def kernel_sizes(x: Tensor, top: Entries, bottom: Entries, per_image: bool) -> list[int]:
    """The int arguments at the end of the kernel's list."""
    return [*x.shape, top.keys.shape[1], bottom.keys.shape[1], int(per_image)]


def blank_moments(x: Tensor) -> Moments:
    """Statistics for the kernel to fill in; it leaves the finite sites to be counted from them."""
    channels, device = x.shape[1], x.device
    low = torch.empty(channels, device=device)
    limbs = torch.empty(LIMBS, channels, dtype=torch.int64, device=device)
    counts = torch.empty(channels, dtype=torch.int64, device=device)
    return Moments(
        low, low.clone(), limbs, limbs.clone(), counts, torch.zeros_like(counts), counts.clone()
    )


def _launch(
    x: Tensor, image_ids: Tensor, top: Entries, bottom: Entries, per_image: bool
) -> Moments:
    if not x.numel():
        return batch_moments(x.to(torch.float32))[0]
    how = plan(x, max(top.keys.shape[1], bottom.keys.shape[1]))
    found = blank_moments(x)
    ends = [part if part.numel() else np.uintp(0) for part in (*top, *bottom)]
    arguments = (
        x if x.dtype == torch.float32 else x.view(torch.int16),  # CuPy has no bfloat16
        *(np.int64(stride) for stride in x.stride()),
        image_ids,
        *ends,
        found.minimum,
        found.maximum,
        found.total,
        found.squares,
        found.zeros,
        found.nonfinite,
        *(np.int32(size) for size in kernel_sizes(x, top, bottom, per_image)),
    )
    function = _cuda.kernel("survey", how.defines, x.device)
    grid = -(-x.shape[1] // how.tile)
    _cuda.launch(function, grid, BLOCK, arguments, how.shared_bytes, x.device)
    return found._replace(finite=x.shape[0] * x.shape[2] - found.nonfinite)
