"""Ground truth on real images and networks, and on the demo world.

    python -m benchmarks.ground_truth SHARED [--out runs] [--sets 100] [--units 100] [--demo-only]

SHARED holds ``data/tiny-imagenet`` and ``weights`` (a quantised ResNet-50 to plant units on, a
quantised ResNet-18 as the encoder with its classifier rows as concepts). Related classes and
coarse labels come from ``benchmarks/tiny_imagenet_parents.json``. Prints the worst contrasts on
the held-out classes as Markdown; the whole tables and figures are in the folders it names.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from psi_engine.validation import GroundTruthConfig, run_ground_truth, summarise

PARENTS = Path(__file__).parent / "tiny_imagenet_parents.json"
WEIGHTS = "{}_imagenet_quantised.safetensors"
HEADLINES = ("unrelated", "related", "projection")


def main() -> None:
    """Run both worlds and print what they say."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("shared", type=Path)
    parser.add_argument("--out", type=Path, default=Path("runs"))
    parser.add_argument("--sets", type=int, default=100)
    parser.add_argument("--units", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--demo-only", action="store_true")
    arguments = parser.parse_args()
    common = {"sets": arguments.sets, "units": arguments.units, "seed": arguments.seed}
    configs = [GroundTruthConfig.demo(out=str(arguments.out / "ground-truth-demo"), **common)]
    if not arguments.demo_only:
        configs.append(real(arguments.shared, arguments.out / "ground-truth", **common))
    for config in configs:
        show(summarise(run_ground_truth(config, progress=tell)))


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


def show(found: dict[str, Any]) -> None:
    """Print a summary as Markdown tables."""
    print(f"\n{found['ground_truth']}: {found['counts']}, seconds {found['seconds']}")
    for suite, rows in found["suites"].items():
        print(f"\n| {suite} | " + " | ".join(HEADLINES) + " |")
        print("|---|---|---|---|")
        for row in rows:
            cells = [
                f"{row[name]:.3f} [{row[f'{name}_low']:.3f}, {row[f'{name}_high']:.3f}]"
                if name in row
                else "–"
                for name in HEADLINES
            ]
            print(f"| {row['measure']} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
