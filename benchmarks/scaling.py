"""Measure the constants of docs/scaling.md: what an image, a crop, a channel and a merge cost.

    python -m benchmarks.scaling [--rounds 5]

Times are seconds of processor time of one thread, medians over the rounds, so that other work
on the machine hardly shows. The network is a torchvision ResNet-50 with random weights at 64
pixels, the images those of the demo, the encoder the demo's.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

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


def main() -> None:
    """Print one line per constant."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    print(f"torch {torch.__version__}, 1 thread, {rounds} rounds")
    for what, unit, items, work in (*mining(), *later()):
        print(f"{what:46} {median(work, rounds) / items * 1e6:12.1f} µs per {unit}")
    state = miner().state_dict()
    each = sum(x.numel() * x.element_size() for name, x in state.items() if _is_channels(name))
    print(
        f"{'saved state, K = 50 top, bottom and random':46} {each / CHANNELS:12.0f} B per channel"
    )


def mining() -> list[tuple[str, str, int, Callable[[], object]]]:
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
        ("decode and resize", "image", BATCH, decode),
        ("forward pass", "image", BATCH, forward),
        (
            f"keep the best, 8 × 8 sites, after {WARM} images",
            "image and channel",
            BATCH * CHANNELS,
            lambda: first.update(maps, ids + next(shown)),
        ),
        ("merge two miners", "channel", CHANNELS, lambda: first.merge(second)),
        ("save a state", "channel", CHANNELS, lambda: save(first)),
    ]


def later() -> list[tuple[str, str, int, Callable[[], object]]]:
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
            (
                f"score, preset {name}, M = {config.replicates}",
                "channel",
                32,
                lambda config=config: score(
                    z, labels, texts, pool=pool, config=config, device="cpu"
                ),
            )
        )
    return [("embed, the demo's encoder", "crop", 64, lambda: encodes.encode_images(crops)), *found]


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


def median(work: Callable[[], object], rounds: int) -> float:
    """Median seconds of processor time, after one warm-up."""
    work()
    times = []
    for _ in range(rounds):
        started = time.process_time()
        work()
        times.append(time.process_time() - started)
    return statistics.median(times)


def _is_channels(name: str) -> bool:
    return not name.startswith("pool") and name not in ("images", "newest")


if __name__ == "__main__":
    main()
