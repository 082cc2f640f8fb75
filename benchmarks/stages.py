"""Hold a run's stages against their own arithmetic: the bare forward pass, the bare encoder.

    python -m benchmarks.stages RUN [--rounds 5]

Reads what the run recorded (images, crops, seconds), rebuilds its model and encoder, times one
micro-batch of each alone on random input, and prints how much slower the stages were. Factory
models and encoders must be importable from where this is run.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

import psi_engine as psi
from psi_engine.encoders import load_encoder
from psi_engine.mining import MICRO_BATCH
from psi_engine.models import load_model

ENCODER_BATCH = 64


def main() -> None:
    """Print one line per stage: items, seconds, the floor's seconds, their ratio."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    manifest = psi.open_run(arguments.run).manifest
    config = manifest["config"]
    model = load_model(config["model"], config["weights"], config["image_size"])
    side, batch = model.preprocess.image_size, MICRO_BATCH["cpu"]
    images = torch.rand(batch, 3, side, side).contiguous(memory_format=torch.channels_last)
    module = model.module.to(memory_format=torch.channels_last)
    encoder = load_encoder(config["encoder"], config["encoder_weights"], "cpu")
    crops = torch.rand(ENCODER_BATCH, 3, encoder.image_size, encoder.image_size)
    stages = manifest["stages"]
    for stage, items, floor in (
        (
            "mine",
            stages["mine"]["images"],
            _per_item(lambda: module(images), batch, arguments.rounds),
        ),
        (
            "embed",
            stages["embed"]["crops"],
            _per_item(lambda: encoder.encode_images(crops), ENCODER_BATCH, arguments.rounds),
        ),
    ):
        seconds = stages[stage]["seconds"]
        print(
            f"{stage:6} {items:6} items {seconds:8.1f} s   alone {items * floor:8.1f} s"
            f"   ratio {seconds / (items * floor):5.2f}"
        )


def _per_item(work: Callable[[], object], items: int, rounds: int) -> float:
    """Return the median seconds per item over the rounds, after one warm-up."""
    times = []
    with torch.inference_mode():
        work()
        for _ in range(rounds):
            started = time.perf_counter()
            work()
            times.append((time.perf_counter() - started) / items)
    return statistics.median(times)


if __name__ == "__main__":
    main()
