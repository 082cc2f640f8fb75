"""Which layers are mined together: as many as the memory holds, the others in later passes.

What ``memory`` counts, on the device that mines (a CPU's main memory, a GPU's own):

- what the layers of a pass keep, O(channels × K); with ``exact-fp16`` the fp32 extremes too. What
  the layers of other passes keep lies in files meanwhile;
- room to take in one micro-batch of activations: outputs are taken in where they arise, so only
  one layer works at a time; with ``exact-fp16`` its fp32 maps as well;
- images on their way: the batches that are being read, waiting, cut up and normalised.

What it does not count: the model and its forward pass; the image that is being decoded, and the
processes that do it; what grows with the images, their listing and, for each, 9 bytes of ids and
marks (``exact-fp16``: a byte a layer more, and some 60 in all while it draws its sample); on a CPU
the sites that are handed back at the end, 20 bytes each, and what several ranks saved while it is
joined. Interpreter, libraries and the allocator's losses come on top, some 64 MiB. A pass runs the
model no further than its last layer.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from psi_engine.config import MineConfig
from psi_engine.errors import InputError
from psi_engine.mining.miner import kept_per_channel
from psi_engine.ops.backend import memory_budget
from psi_engine.types import ActivationShape

_ENTRY = 20  # bytes of a kept site: an int64, a float32, a key of either
_STATISTICS = 256  # bytes of a channel's sums
_COPIES = 4  # of a micro-batch's activations while they are taken in


def buffer_bytes(shape: ActivationShape, config: MineConfig, channels: int | None = None) -> int:
    """What a layer keeps while it is mined."""
    count = shape.channels if channels is None else channels
    entries = kept_per_channel(config)
    if config.precision == "exact-fp16":
        entries += config.top_k + config.bottom_k
    return count * (entries * _ENTRY + _STATISTICS) + config.pool * _ENTRY


def working_bytes(shape: ActivationShape, micro: int) -> int:
    """What taking in a micro-batch of a layer needs for its duration."""
    return 4 * _COPIES * micro * shape.channels * shape.grid[0] * shape.grid[1]


def loading_bytes(view: Tensor, prepared: Tensor, batch_size: int, workers: int, micro: int) -> int:
    """What images need on their way to the model.

    Parameters
    ----------
    view, prepared : Tensor
        One image as it is loaded, and as the model gets it.
    batch_size, workers : int
        Two batches wait for each worker; four are being read, stacked, joined and cut.
    micro : int
        Images in a forward pass; three copies of them are made from views to input.
    """
    return view.nbytes * batch_size * (4 + 2 * workers) + 3 * micro * prepared.nbytes


def layer_passes(
    shapes: Mapping[str, ActivationShape],
    config: MineConfig,
    device: torch.device,
    micro: int,
    channels: Mapping[str, Tensor] | None = None,
    loading: int = 0,
) -> list[list[str]]:
    """Cut the layers, in their order, into passes that fit the memory.

    Parameters
    ----------
    shapes : mapping of layer name to ActivationShape
    config : MineConfig
        Its ``memory`` is the budget; None = a quarter of what the device has free.
    device : torch.device
    micro : int
        Images in a forward pass.
    channels : mapping of layer name to Tensor, optional
        The channels kept; layers not named keep all.
    loading : int
        Bytes of :func:`loading_bytes`, needed in every pass.

    Raises
    ------
    InputError
        A layer alone needs more.
    """
    budget = memory_budget(device, config.memory)
    passes: list[list[str]] = [[]]
    kept = working = 0
    for name, shape in shapes.items():
        subset = None if channels is None or name not in channels else len(channels[name])
        own = buffer_bytes(shape, config, subset)
        room = loading + working_bytes(shape, micro)
        if own + room > budget:
            raise InputError(
                f"the memory does not hold the mining of {name}",
                got=f"{budget:,} bytes" + ("" if config.memory else ", a quarter of what is free"),
                expected=f"at least {own + room:,}",
                fix="give more --memory, fewer --channels, or a smaller --top-k or --batch-size",
            )
        if passes[-1] and kept + own + max(working, room) > budget:
            passes.append([])
            kept = working = 0
        passes[-1].append(name)
        kept, working = kept + own, max(working, room)
    return passes
