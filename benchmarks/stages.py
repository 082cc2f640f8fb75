"""Hold a run's stages against their own arithmetic: the bare forward pass, the bare encoder.

    python -m benchmarks.stages RUN --out benchmarks/results

Reads what the run recorded (images, crops, seconds), rebuilds its model and encoder, and times one
micro-batch of each alone on random input, in turns. ``ratio`` is how many times longer than so
many of these the stage took. Factory models and encoders must be importable from where this is run.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

import psi_engine as psi
from benchmarks.harness import Results, Work, interleave, spread
from psi_engine.encoders import load_encoder
from psi_engine.mining import MICRO_BATCH
from psi_engine.models import load_model

ENCODER_BATCH = 64


def main(arguments: Sequence[str] | None = None) -> Results:
    """Print and write one row per stage."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--out", type=Path, help="folder for stages.csv and stages.json")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args(arguments)
    manifest = psi.open_run(options.run).manifest
    config, stages = manifest["config"], manifest["stages"]
    names = ("model", "weights", "layers", "image_size", "encoder", "encoder_weights")
    of_run = {name: str(config[name]).rpartition("/")[2] for name in names}
    results = Results("stages", vars(options) | of_run)
    model = load_model(config["model"], config["weights"], config["image_size"])
    side, batch = model.preprocess.image_size, MICRO_BATCH["cpu"]
    images = torch.rand(batch, 3, side, side).contiguous(memory_format=torch.channels_last)
    module = model.module.to(memory_format=torch.channels_last)
    encoder = load_encoder(config["encoder"], config["encoder_weights"], "cpu")
    crops = torch.rand(ENCODER_BATCH, 3, encoder.image_size, encoder.image_size)
    works = {
        "mine": Work(without_gradients(lambda: module(images))),
        "embed": Work(without_gradients(lambda: encoder.encode_images(crops))),
    }
    taken = interleave(works, options.rounds)
    for stage, counted, each in (("mine", "images", batch), ("embed", "crops", ENCODER_BATCH)):
        items, seconds = stages[stage][counted], stages[stage]["seconds"]
        alone = [r.seconds * items / each for r in taken[stage]]
        results.add(
            stage=stage,
            items=items,
            seconds=seconds,
            alone_seconds=spread(alone),
            ratio=spread([seconds / x for x in alone]),
        )
    if options.out:
        results.write(options.out)
    return results


def without_gradients(work: Callable[[], object]) -> Callable[[], object]:
    """The same call, as stages make it."""
    return torch.inference_mode()(work)


if __name__ == "__main__":
    main()
