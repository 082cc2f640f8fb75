"""Join what the ranks of a job mined: each takes its share of the channels from all of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace

import torch
from torch import Tensor

from psi_engine.distributed import World
from psi_engine.mining.miner import Miner
from psi_engine.types import ActivationStats, LayerSites, SiteSet

_CHANNELS_LAST = ("moments.total", "moments.squares")


def exchange(miners: Mapping[str, Miner], world: World) -> dict[str, LayerSites] | None:
    """Merge the miners of all ranks, channel by channel at its owner, and gather the results.

    Parameters
    ----------
    miners : mapping of layer name to Miner
        What this rank mined of its images; no image was seen by two ranks.
    world : World

    Returns
    -------
    dict of layer name to LayerSites, or None
        What one miner would have found in all images, to the bit, on rank 0; None elsewhere.

    Notes
    -----
    A rank holds its own K sites of every channel and, a layer at a time, every rank's of its
    share of the channels: the memory of mining alone and ``1/ranks`` of it per rank more.
    Sites merge as sets and statistics as exact sums, so neither the number of ranks nor how the
    images were cut changes a bit.
    """
    owned = {name: _owned(miner, world) for name, miner in miners.items()}
    gathered = world.gather(owned)
    if gathered is None:
        return None
    return {
        name: _join([part for rank in gathered if (part := rank[name]) is not None])
        for name in miners
    }


def _owned(miner: Miner, world: World) -> LayerSites | None:
    """The sites of this rank's channels in the images of all ranks; None where it owns none."""
    state = miner.state_dict()
    channels = state.pop("channels")
    shares = [world.share(len(channels), rank) for rank in range(world.size)]
    counts = [share.stop - share.start for share in shares]
    received = {name: _received(name, x, counts, world) for name, x in state.items()}
    mine = channels[shares[world.rank]]
    if not len(mine):
        return None
    merged: Miner | None = None
    for rank in range(world.size):
        part = Miner(miner.layer, miner.shape, miner.config, mine, world.device)
        part.load_state_dict({name: x[rank] for name, x in received.items()} | {"channels": mine})
        if merged is None:
            merged = part
        else:
            merged.merge(part)
    return None if merged is None else merged.result()


def _received(name: str, x: Tensor, counts: list[int], world: World) -> list[Tensor]:
    if x.ndim == 0:
        found = world.exchange(x.expand(world.size), [1] * world.size)
        return [part[0] for part in found]
    if name.startswith("pool."):  # the layer's, not a channel's: every owner needs it whole
        return world.exchange(x.expand(world.size, *x.shape[1:]), [1] * world.size)
    if name in _CHANNELS_LAST:
        return [part.T.contiguous() for part in world.exchange(x.T, counts)]
    return world.exchange(x, counts)


def _join(parts: list[LayerSites]) -> LayerSites:
    """Put the channels of several owners one after the other."""
    sets = [
        SiteSet(*(torch.cat(x) for x in zip(*(getattr(p, name) for p in parts), strict=True)))
        for name in ("top", "bottom", "random")
    ]
    stats = ActivationStats(
        *(torch.cat([getattr(p.stats, f.name) for p in parts]) for f in fields(ActivationStats))
    )
    return replace(
        parts[0],
        channels=torch.cat([p.channels for p in parts]),
        top=sets[0],
        bottom=sets[1],
        random=sets[2],
        stats=stats,
    )
