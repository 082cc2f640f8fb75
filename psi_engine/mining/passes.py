"""Which layers are mined together: as many as the memory holds, the others in later passes.

What a layer needs while it is mined is its buffers, O(channels × K), and room to work on one
micro-batch of its activations; outputs are taken in where they arise, so only one layer works at
a time. A pass runs the model no further than its last layer.
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
    return count * (entries * _ENTRY + _STATISTICS) + config.pool * _ENTRY


def working_bytes(shape: ActivationShape, micro: int) -> int:
    """What taking in a micro-batch of a layer needs for its duration."""
    return 4 * _COPIES * micro * shape.channels * shape.grid[0] * shape.grid[1]


def layer_passes(
    shapes: Mapping[str, ActivationShape],
    config: MineConfig,
    device: torch.device,
    micro: int,
    channels: Mapping[str, Tensor] | None = None,
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
        own, room = buffer_bytes(shape, config, subset), working_bytes(shape, micro)
        if own + room > budget:
            raise InputError(
                f"the memory does not hold the mining of {name}",
                got=f"{budget:,} bytes",
                expected=f"at least {own + room:,}",
                fix="give more --memory, fewer --channels, or a smaller --top-k",
            )
        if passes[-1] and kept + own + max(working, room) > budget:
            passes.append([])
            kept = working = 0
        passes[-1].append(name)
        kept, working = kept + own, max(working, room)
    return passes
