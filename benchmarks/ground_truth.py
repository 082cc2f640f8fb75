"""Ground truth on real images and networks, and on the demo world.

    python -m benchmarks.ground_truth SHARED --out benchmarks/results [--sets 100] [--units 100]

SHARED holds ``data/tiny-imagenet`` and ``weights`` (a quantised ResNet-50 to plant units on, a
quantised ResNet-18 as the encoder with its classifier rows as concepts). Related classes and
coarse labels come from ``benchmarks/tiny_imagenet_parents.json``. A row is a measure's worst
contrasts on the held-out classes, with bootstrap intervals; the whole tables and figures are in
the folders it names, under ``--runs``.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.harness import Results
from psi_engine.validation import GroundTruthConfig, run_ground_truth, summarise

PARENTS = Path(__file__).parent / "tiny_imagenet_parents.json"
WEIGHTS = "{}_imagenet_quantised.safetensors"


def main(arguments: Sequence[str] | None = None) -> Results:
    """Run both worlds; print and write one row per world, suite and measure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("shared", type=Path)
    parser.add_argument("--out", type=Path, help="folder for ground-truth.csv and .json")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="for the whole tables")
    parser.add_argument("--sets", type=int, default=100)
    parser.add_argument("--units", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--demo-only", action="store_true")
    options = parser.parse_args(arguments)
    results = Results("ground-truth", vars(options), keep=options.out)
    common = {"sets": options.sets, "units": options.units, "seed": options.seed}
    worlds = {"demo": GroundTruthConfig.demo(out=str(options.runs / "ground-truth-demo"), **common)}
    if not options.demo_only:
        worlds["real"] = real(options.shared, options.runs / "ground-truth", **common)
    results.facts["worlds"] = {}
    for world, config in worlds.items():
        found = summarise(run_ground_truth(config, progress=tell))
        counted = {name: found[name] for name in ("counts", "notes", "seconds")}
        results.facts["worlds"][world] = counted
        print(f"{found['ground_truth']}: {found['counts']}, seconds {found['seconds']}")
        for suite, rows in found["suites"].items():
            for row in rows:
                results.add(world=world, suite=suite, **row)
    if options.out:
        results.write(options.out)
    return results


def real(shared: Path, out: Path, **changes: Any) -> GroundTruthConfig:
    """Tiny-ImageNet, units on ResNet-50, patches seen by ResNet-18: never the same network."""
    weights = shared / "weights"
    return GroundTruthConfig(
        data=str(shared / "data" / "tiny-imagenet"),
        model="resnet50",
        weights=str(weights / WEIGHTS.format("resnet50")),
        image_size=128,  # where it does best on these 64-pixel images
        encoder="classifier:resnet18",
        encoder_weights=str(weights / WEIGHTS.format("resnet18")),
        coarse=str(PARENTS),
        out=str(out),
        **changes,
    )


def tell(what: str, done: int, total: int) -> None:
    """Print progress on one line of stderr."""
    sys.stderr.write(f"\r{what}: {done} of {total}   " + "\n" * (done == total))


if __name__ == "__main__":
    main()
