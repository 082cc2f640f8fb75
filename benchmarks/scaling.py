"""Measure the constants of docs/scaling.md: what an image, a crop, a channel and a merge cost.

    python -m benchmarks.scaling --out benchmarks/results

Times are microseconds of processor time of one thread, the works in turns, so that other work on
the machine hardly shows. The network is a torchvision ResNet-50 with random weights at 64
pixels, the images those of the demo, the encoder the demo's.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from benchmarks.harness import Results, Work, interleave, spread
from psi_engine.artifacts import write_tensors
from psi_engine.config import MineConfig, ScoreConfig
from psi_engine.data import open_source
from psi_engine.demo import encoder
from psi_engine.demo.assets import images_path
from psi_engine.mining import MICRO_BATCH, Miner
from psi_engine.models import load_model
from psi_engine.scores.score import score
from psi_engine.types import ActivationShape

BATCH = MICRO_BATCH["cpu"]
WARM = 1024  # images that a miner has seen
CHANNELS, DIM, PATCHES = 256, 512, 50


class Cost(NamedTuple):
    """One constant: what costs it, per what, how many of those a call of the work makes."""

    what: str
    unit: str
    items: int
    work: Callable[[], object]


def main(arguments: Sequence[str] | None = None) -> Results:
    """Print and write one row per constant."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="folder for scaling.csv and scaling.json")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    results = Results("scaling", vars(options))
    costs = {cost.what: cost for cost in (*mining(), *later())}
    works = {name: Work(cost.work) for name, cost in costs.items()}
    for name, rounds in interleave(works, options.rounds, time.process_time).items():
        each = [1e6 * r.seconds / costs[name].items for r in rounds]
        results.add(what=name, per=costs[name].unit, microseconds=spread(each))
    state = miner().state_dict()
    kept = sum(x.numel() * x.element_size() for name, x in state.items() if _is_channels(name))
    results.add(what="saved state, K = 50 top, bottom and random", per="channel",
                bytes=kept / CHANNELS)  # fmt: skip
    if options.out:
        results.write(options.out)
    return results


def mining() -> list[Cost]:
    """What every image costs, and what joining two miners costs."""
    model = load_model("resnet50", "none", 64)
    images = torch.rand(BATCH, 3, 64, 64).contiguous(memory_format=torch.channels_last)
    module = model.module.eval().to(memory_format=torch.channels_last)
    source = open_source(images_path())
    ids, maps = torch.arange(BATCH), some_maps()
    first, second = miner(maps), miner(maps.flip(0))
    shown = iter(range(BATCH, 1 << 40, BATCH))
    for _ in range(WARM // BATCH):  # buffers that fill take more
        first.update(some_maps(), ids + next(shown))

    def decode() -> None:
        for image in range(BATCH):
            source.view(image, model.preprocess)

    def forward() -> None:
        with torch.inference_mode():
            module(images)

    return [
        Cost("decode and resize", "image", BATCH, decode),
        Cost("forward pass", "image", BATCH, forward),
        Cost(
            f"keep the best, 8 × 8 sites, after {WARM} images",
            "image and channel",
            BATCH * CHANNELS,
            lambda: first.update(maps, ids + next(shown)),
        ),
        Cost("merge two miners", "channel", CHANNELS, lambda: first.merge(second)),
        Cost("save a state", "channel", CHANNELS, lambda: save(first)),
    ]


def later() -> list[Cost]:
    """What crops and channels cost after mining."""
    encodes = encoder()
    crops = torch.rand(64, 3, encodes.image_size, encodes.image_size)
    z = torch.randn(32, PATCHES, DIM)
    labels = torch.randint(0, 20, (32, PATCHES))
    texts, pool = torch.randn(200, DIM), torch.randn(1000, DIM)
    found = []
    for name, config in (
        ("calibrated", ScoreConfig(subsamples=200)),
        ("paper", ScoreConfig.preset("paper", d_null="text-shuffle")),
    ):
        found.append(
            Cost(
                f"score, preset {name}, M = {config.replicates}",
                "channel",
                32,
                lambda config=config: score(
                    z, labels, texts, pool=pool, config=config, device="cpu"
                ),
            )
        )
    embedding = Cost("embed, the demo's encoder", "crop", 64, lambda: encodes.encode_images(crops))
    return [embedding, *found]


def some_maps() -> torch.Tensor:
    """Activations of a batch as a network puts them out."""
    maps = torch.randn(BATCH, CHANNELS, 8, 8)
    return maps.contiguous(memory_format=torch.channels_last)


def miner(maps: torch.Tensor | None = None) -> Miner:
    """A miner of one layer, after one batch."""
    new = Miner("layer", ActivationShape("map", CHANNELS, (8, 8)), MineConfig())
    if maps is not None:
        new.update(maps, torch.arange(BATCH))
    return new


def save(saved: Miner) -> None:
    """Write a miner's state as a running stage does."""
    with tempfile.TemporaryDirectory() as folder:
        write_tensors(Path(folder) / "state.safetensors", saved.state_dict(), {})


def _is_channels(name: str) -> bool:
    return not name.startswith("pool") and name not in ("images", "newest")


if __name__ == "__main__":
    main()
