"""Random sites of each channel: one site of every image, kept by the image's priority."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from psi_engine.config import Backend
from psi_engine.errors import InputError
from psi_engine.ops import _cuda, topk
from psi_engine.ops.backend import fall_back, resolve_backend
from psi_engine.ops.random import hash_keys, uniform
from psi_engine.ops.topk import Entries

BLOCK = 128
"""Threads of a block of the CUDA kernel; a warp has one channel."""


def reservoir(
    x: Tensor,
    image_ids: Tensor,
    kept: Entries,
    channel_keys: Tensor,
    *,
    fresh: bool,
    backend: Backend = "auto",
) -> Entries:
    """Let one random site of each image of a batch in where its priority is among the greatest.

    Parameters
    ----------
    x : Tensor, float (batch, channels, sites)
        Of any strides.
    image_ids : Tensor, int64 (batch,)
        Distinct, on x's device.
    kept : Entries (channels, k)
        Sorted, contiguous, k > 0; keys are the priorities, int64. The kernel works in place.
    channel_keys : Tensor, int64 (channels,)
        Keys of the draws. A priority is the hash of a channel's key and an image; the place of
        the site in the image is drawn from the priority.
    fresh : bool
        The images ascend and come after all that the buffer holds. Others are merged in torch
        on every backend.
    backend : {"auto", "torch", "cuda"}
        The loops of numba are called by the miner itself, with those of
        :func:`psi_engine.ops.survey.survey`.

    Returns
    -------
    Entries
        The buffer with the batch in it. Sites that are not finite did not enter.

    Raises
    ------
    DeviceError
        The backend was named and cannot run here.
    InputError
        The backend is numba, or the kernel would work on a buffer that is not contiguous.
    """
    if backend == "numba":
        raise InputError("reservoir has no numba path", expected="auto, torch or cuda")
    if resolve_backend(backend, x) == "cuda" and fresh:
        reason = unsupported_reason(x)
        if reason is None:
            if x.numel():
                _launch(x, image_ids, kept, channel_keys)
            return kept
        fall_back(backend, "the reservoir kernel", reason)
    drawn = _draw(x, image_ids, channel_keys)
    if fresh:
        return topk.append(kept, drawn)
    return topk.merge(kept, drawn, kept.keys.shape[1], x.shape[2])


def unsupported_reason(x: Tensor) -> str | None:
    """Why the CUDA kernel cannot take this batch, or None when it can."""
    if x.dtype not in _cuda.FORMATS:
        return f"it takes float32, float16 or bfloat16, not {x.dtype}"
    return None


def _draw(x: Tensor, image_ids: Tensor, channel_keys: Tensor) -> Entries:
    """One random site of each (channel, image), with the image's priority for the channel."""
    sites = x.shape[2]
    priority = hash_keys(channel_keys[:, None], image_ids)
    salt = torch.ones((), dtype=torch.int64, device=x.device)  # from the host it would wait
    position = (uniform(priority, salt) * sites).to(torch.int64)
    values = x.permute(1, 0, 2).gather(2, position[:, :, None]).squeeze(2).to(torch.float32)
    usable = torch.isfinite(values)
    return Entries(
        torch.where(usable, priority, topk.NO_PRIORITY),
        torch.where(usable, image_ids * sites + position, topk.NO_SITE),
        torch.where(usable, values, torch.nan) + 0.0,
    )


def _launch(x: Tensor, image_ids: Tensor, kept: Entries, channel_keys: Tensor) -> None:
    _cuda.check_in_place("reservoir", kept=kept)
    batch, channels, sites = x.shape
    arguments = (
        x,
        *(np.int64(stride) for stride in x.stride()),
        image_ids.to(torch.int64).contiguous(),
        channel_keys.contiguous(),
        *kept,
        *(np.int32(size) for size in (batch, channels, sites, kept.keys.shape[1])),
    )
    function = _cuda.kernel("reservoir", {"FORMAT": str(_cuda.FORMATS[x.dtype])}, x.device)
    _cuda.launch(function, -(-channels * 32 // BLOCK), BLOCK, arguments, 0, x.device)
