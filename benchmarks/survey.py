"""The miner's step: batches of two layers taken in, beside the bytes that must be read."""

from __future__ import annotations

import argparse
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from benchmarks.goals import aim_of
from benchmarks.harness import Results, Work, interleave, spread
from benchmarks.operations import PATCHES, Ceilings, failed, peak_mib, same
from psi_engine.config import MineConfig
from psi_engine.mining.miner import Miner
from psi_engine.ops import topk
from psi_engine.ops.random import hash_keys
from psi_engine.ops.reservoir import reservoir
from psi_engine.ops.survey import survey
from psi_engine.types import ActivationShape

BATCH = 128
"""Images that a run's miner takes in at once on a GPU."""

AT_ONCE = 1024
"""So many at once show what the host's work for each batch costs."""

LAYERS = ((1024, 14), (2048, 7))
"""Channels and side of layer3 and layer4 of a ResNet-50 at 224 pixels."""

DIFFERENT = 2048
"""Images that are made; a sweep goes through them over and over."""

SMALL = ((16, 4),)
"""To test this on a CPU."""


def mined(results: Results, options: argparse.Namespace) -> None:
    """Take in layer3 and layer4 of a ResNet-50 at 224 pixels, batch after batch."""
    ceilings = Ceilings(options.device, options.rounds, results)
    device, cuda = options.device, options.device == "cuda"
    for dtype in (torch.float32, torch.float16):
        maps = batches_of_maps(device, dtype, BATCH)
        if not all(same_buffers(x.flatten(2), device, cuda) for x in maps[0]):
            failed(results, f"mining {dtype}", RuntimeError("a kernel differs from torch"))
        alone = MineConfig(top_k=PATCHES, bottom_k=0, reservoir=0, pool=0)
        for config, name in (
            (alone, "top-K, all images"),
            (replace(alone, reservoir=PATCHES), "top-K and random sites, all images"),
            (MineConfig(top_k=PATCHES), "mining all images"),
        ):
            swept(results, options, ceilings, maps, config, name)
        if cuda:
            maps = batches_of_maps(device, dtype, AT_ONCE)
            name = f"mining all images, {AT_ONCE} at once"
            swept(results, options, ceilings, maps, MineConfig(top_k=PATCHES), name)


def swept(
    results: Results,
    options: argparse.Namespace,
    ceilings: Ceilings,
    maps: list[list[Tensor]],
    config: MineConfig,
    name: str,
) -> None:
    """Add the row of a sweep over all images."""
    batch, dtype = len(maps[0][0]), maps[0][0].dtype
    batches = max(1, options.images // batch)
    work = partial(take_in, maps, config, batches, options.device)
    turns = interleave({name: Work(work)}, max(1, options.rounds // 2))[name]
    seconds = spread([x.seconds for x in turns])
    moved = sum(x.numel() * x.element_size() for x in maps[0]) * batches
    aim = aim_of({"what": name, "images": batches * batch}, vars(options))
    results.add(
        what=name, dtype=str(dtype), images=batches * batch, seconds=seconds,
        **ceilings.beside(seconds, moved, 0),
        goal=aim and aim.goal,
        peak_mib=peak_mib(work, options.device),
    )  # fmt: skip


def batches_of_maps(device: str, dtype: torch.dtype, batch: int) -> list[list[Tensor]]:
    """Layers of several batches, so that none is read from a cache; seen again, sites only tie."""
    cuda = device == "cuda"
    return [
        [
            torch.randn(batch, channels, side, side, device=device)
            .relu_().to(dtype).to(memory_format=torch.channels_last)
            for channels, side in (LAYERS if cuda else SMALL)
        ]
        for _ in range(DIFFERENT // batch if cuda else 2)
    ]  # fmt: skip


def same_buffers(x: Tensor, device: str, cuda: bool) -> bool:
    """Whether the kernel and torch keep the same entries of one batch."""
    found = []
    for backend in ("cuda" if cuda else "auto", "torch"):
        ends = [topk.empty(x.shape[1], k, torch.float32, device) for k in (PATCHES, 10)]
        ids = torch.arange(len(x), device=device)
        *kept, _ = survey(x, ids, *ends, sites_per_group=1, fresh=True, backend=backend)
        drawn = topk.empty(x.shape[1], PATCHES, torch.int64, device)
        keys = hash_keys(0, torch.arange(x.shape[1], device=device))
        found.append([*kept, reservoir(x, ids, drawn, keys, fresh=True, backend=backend)])
    return all(
        same(a, b)
        for ours, theirs in zip(*found, strict=True)
        for a, b in zip(ours, theirs, strict=True)
    )


def take_in(maps: list[list[Tensor]], config: MineConfig, batches: int, device: str) -> None:
    """Mine every layer of every batch."""
    miners = [
        Miner(
            f"layer{at}",
            ActivationShape("map", x.shape[1], (x.shape[2], x.shape[3])),
            config,
            device=device,
        )
        for at, x in enumerate(maps[0])
    ]
    batch = len(maps[0][0])
    for at in range(batches):
        ids = torch.arange(at * batch, (at + 1) * batch)
        for miner, x in zip(miners, maps[at % len(maps)], strict=True):
            miner.update(x, ids)
