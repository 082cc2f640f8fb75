"""One batch of activations into sorted buffers of both ends, and its statistics, in one pass."""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from psi_engine.config import Backend
from psi_engine.errors import InputError
from psi_engine.ops import _cuda, topk
from psi_engine.ops.backend import fall_back, resolve_backend
from psi_engine.ops.moments import LIMBS, Moments, add_moments, batch_moments, empty_moments
from psi_engine.ops.topk import Entries

BLOCK = 256
"""Threads of a block of the CUDA kernel; each of its warps takes a part of an image at a time."""
LARGEST_K = 1 << 14
"""Sites of a channel that the kernel can keep."""

_WARPS = BLOCK // 32
_RESIDENT = 2  # blocks that a multiprocessor has the registers for
_PARTS = 8  # of an image at most: 2²⁰ images may be added before Miner carries
_PART = 96  # sites worth a part's sums
_CAPACITY = 1024


def survey(
    x: Tensor,
    image_ids: Tensor,
    top: Entries,
    bottom: Entries,
    *,
    sites_per_group: int,
    fresh: bool,
    backend: Backend = "auto",
    moments: Moments | None = None,
) -> tuple[Entries, Entries, Moments]:
    """Keep a batch's best sites at both ends, and sum up its finite ones.

    Parameters
    ----------
    x : Tensor, float (batch, channels, sites)
        Of any strides: a kernel reads channels-last maps as they are.
    image_ids : Tensor, int64 (batch,)
        Distinct, on x's device.
    top, bottom : Entries (channels, k)
        Sorted, contiguous; the bottom holds the top of −x. Width 0 = not wanted. The kernel
        works in place.
    sites_per_group : int
        1 = every site for itself; the number of sites = only the best one of each image.
    fresh : bool
        The images ascend and come after all that the buffers hold. Others are merged in torch
        on every backend.
    backend : {"auto", "torch", "cuda"}
        The loops of numba are called by the miner itself: they keep its random sites too.
    moments : Moments, optional
        Contiguous statistics to add to; None = of nothing yet. The kernel works in place.

    Returns
    -------
    tuple of Entries, Entries and Moments
        The buffers and the statistics with the batch in them.

    Raises
    ------
    DeviceError
        The backend was named and cannot run here.
    InputError
        The backend is numba, or the kernel would work on buffers or statistics that are not
        contiguous.
    """
    if backend == "numba":
        raise InputError("survey has no numba path", expected="auto, torch or cuda")
    if resolve_backend(backend, x) == "cuda" and fresh:
        k, per_image = max(top.keys.shape[1], bottom.keys.shape[1]), sites_per_group > 1
        reason = unsupported_reason(x, k, per_image)
        if reason is None:
            if moments is None:
                moments = empty_moments(x.shape[1], x.device)
            if x.numel():
                _launch(x, image_ids, top, bottom, moments, per_image)
            return top, bottom, moments
        fall_back(backend, "the survey kernel", reason)
    x = x.to(torch.float32)
    found, finite = batch_moments(x)
    moments = found if moments is None else add_moments(moments, found)

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
    """How the CUDA kernel runs.

    defines : macros. grid : blocks. shared_bytes : dynamic shared memory of a block.
    tiles, slices : what the grid is the product of. length : sites of a part of an image.
    places : room for survivors of a channel and end.
    """

    defines: dict[str, str]
    grid: int
    shared_bytes: int
    tiles: int
    slices: int
    length: int
    places: int


def plan(x: Tensor, k: int, per_image: bool, processors: int) -> Launch:
    """Cut the work of a batch into blocks.

    Parameters
    ----------
    x : Tensor, float (batch, channels, sites)
        Not empty.
    k : int
        Entries of the wider buffer.
    per_image : bool
    processors : int
        Multiprocessors of the device.
    """
    size = x.element_size()
    wide = 8 // size
    _, channel_stride, site_stride = x.stride()
    rows = x.shape[2] > 1 and site_stride <= channel_stride
    together = channel_stride == 1 and not rows
    # Eight bytes at once need to begin at multiples of eight, whatever image and site.
    steps = x.shape[1] | x.stride(0) | (site_stride if x.shape[2] > 1 else 0)
    aligned = x.data_ptr() % 8 == 0 and steps % wide == 0
    width = wide if together and aligned else 1
    return _plan(*x.shape, _cuda.FORMATS[x.dtype], rows, width, k, per_image, processors)


@cache
def _plan(
    batch: int,
    channels: int,
    sites: int,
    form: int,
    rows: bool,
    width: int,
    k: int,
    per_image: bool,
    processors: int,
) -> Launch:
    length = part_length(sites)
    units = batch * -(-sites // length)
    tile = 32 * width
    tiles = -(-channels // tile)
    # As many rounds for every warp as fill all multiprocessors once, then no more slices.
    rounds = max(1, -(-units * tiles // (_WARPS * _RESIDENT * processors)))
    slices = -(-units // (_WARPS * rounds))
    capacity = max(_CAPACITY, 1 << (k - 1).bit_length())
    places = batch if per_image else min(capacity, 64 + batch * sites // 8)
    first = 16 * LIMBS * tile + 16 * tile + (_WARPS * 4 * 32 * 33 if rows else 0)
    then = 12 * capacity + 4 * 256 + 16
    defines = {
        "FORMAT": str(form),
        "ROWS": str(int(rows)),
        "WIDTH": str(width),
        "BLOCK": str(BLOCK),
        "CAPACITY": str(capacity),
        "LIMBS": str(LIMBS),
    }
    return Launch(defines, tiles * slices, max(first, then), tiles, slices, length, places)


def part_length(sites: int) -> int:
    """Sites that the kernel sums up in one go: a choice that bits depend on, so of sites alone."""
    parts = min(_PARTS, max(1, sites // _PART))
    return -(-sites // (8 * parts)) * 8


def unsupported_reason(x: Tensor, k: int, per_image: bool) -> str | None:
    """Why the CUDA kernel cannot take this batch, or None when it can."""
    if x.dtype not in _cuda.FORMATS:
        return f"it takes float32, float16 or bfloat16, not {x.dtype}"
    if x.shape[0] * x.shape[2] >= 1 << 31:
        return f"{x.shape[0]} images of {x.shape[2]} sites exceed 31 bits"
    if k > LARGEST_K:
        return f"{k} sites of a channel are more than the {LARGEST_K} it can keep"
    if not x.numel():
        return None
    how = plan(x, k, per_image, _cuda.processors(x.device))
    there = _cuda.shared_memory_limit(x.device)
    if how.shared_bytes > there:
        return f"{k} sites of a channel need {how.shared_bytes} B shared, {there} are there"
    return None


def _workspace(x: Tensor, per_image: bool, how: Launch) -> tuple[Tensor, Tensor]:
    """What the kernel counts in, all 0, and its room for survivors: int64 each."""
    channels = x.shape[1]
    counts = channels + -(-how.tiles // 2)  # two of 32 bits each
    room = 2 * channels * how.places
    if per_image:
        space = torch.zeros(counts + room, dtype=torch.int64, device=x.device)
    else:
        space = torch.empty(counts + room, dtype=torch.int64, device=x.device)
        space[:counts].zero_()
    return space[:counts], space[counts:]


def _launch(
    x: Tensor,
    image_ids: Tensor,
    top: Entries,
    bottom: Entries,
    moments: Moments,
    per_image: bool,
) -> None:
    _cuda.check_in_place("survey", top=top, bottom=bottom, moments=moments)
    k = max(top.keys.shape[1], bottom.keys.shape[1])
    how = plan(x, k, per_image, _cuda.processors(x.device))
    sizes = *x.shape, top.keys.shape[1], bottom.keys.shape[1], per_image
    arguments = (
        x,
        *(np.int64(stride) for stride in x.stride()),
        image_ids.to(torch.int64).contiguous(),
        *top,
        *bottom,
        *moments,
        *_workspace(x, per_image, how),
        *(np.int32(size) for size in (*sizes, how.length, how.slices, how.places)),
    )
    function = _cuda.kernel("survey", how.defines, x.device)
    _cuda.launch(function, how.grid, BLOCK, arguments, how.shared_bytes, x.device)
