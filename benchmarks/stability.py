"""How much a channel's z changes with the seed, at M = 1000, against what chance allows.

    python -m benchmarks.stability --out benchmarks/results

The same embeddings are scored with two seeds. A z from M draws carries sampling error: the null's
mean has variance σ²/M and its standard deviation σ²/2M, so the difference of two z's has standard
deviation √(2(1 + z²/2)/M). The bounds: 0.5 where |z| ≤ 3, five of these standard deviations
beyond. The seed also decides the seedings of K-means, of the channel and of every draw, so the
difference shows solver noise on top: ``same_raw`` is the share of channels whose observed value
did not change. Under a null shared by all channels the draws' part of the difference is shared.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import psi_engine as psi
from benchmarks.harness import Results
from benchmarks.problems import clip_like, words
from psi_engine.config import ScoreConfig

NEAR = 3.0
"""|z| up to which the first bound holds."""

MOST_NEAR = 0.5
STANDARD_DEVIATIONS = 5.0
PATCHES, POOL, CONCEPTS = 50, 4096, 267


class Case(NamedTuple):
    """The component whose z is compared, its null, and whether that is made for every channel."""

    component: str
    null: str
    own: bool


CASES = (
    Case("s", "rotation-samples", True),
    Case("s", "rotation-tangent", True),
    Case("s", "rotation", False),
    Case("s", "pool", False),
    Case("s", "neighborhood", False),
    Case("q", "permutation", False),
    Case("d", "text-rotation", False),
    Case("d", "pool", False),
    Case("d", "neighborhood", False),
    Case("d", "unrelated-text", False),
)


def allowed(z: np.ndarray, replicates: int) -> np.ndarray:
    """Largest difference of two z's around a mean z: float64, the shape of z."""
    beyond = STANDARD_DEVIATIONS * np.sqrt(2 * (1 + z**2 / 2) / replicates)
    return np.where(np.abs(z) <= NEAR, MOST_NEAR, beyond)


def main(arguments: Sequence[str] | None = None) -> Results:
    """Print and write two rows per case: channels with small and with large z."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="folder for stability.csv and stability.json")
    parser.add_argument("--own", type=int, default=32, help="channels under nulls of their own")
    parser.add_argument("--channels", type=int, default=512, help="channels under the others")
    parser.add_argument("--replicates", type=int, default=1000)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--seed", type=int, default=0, help="of the data; z's have seeds 0 and 1")
    options = parser.parse_args(arguments)
    results = Results("stability", vars(options))
    for case in CASES:
        (raw, first), (raw_again, second) = (_scores(case, seed, options) for seed in (0, 1))
        z, change = (first + second) / 2, np.abs(first - second)
        within = change <= allowed(z, options.replicates)
        near = np.abs(z) <= NEAR
        for size, where in (("|z| <= 3", near), ("|z| > 3", ~near)):
            if not where.any():
                continue
            deviation = change[where] / np.sqrt(2 * (1 + z[where] ** 2 / 2) / options.replicates)
            p50, p95, p100 = np.percentile(change[where], (50, 95, 100)).tolist()
            results.add(
                component=case.component,
                null=case.null,
                size=size,
                channels=int(where.sum()),
                within=float(within[where].mean()),
                same_raw=float((raw == raw_again)[where].mean()),
                change_p50=p50,
                change_p95=p95,
                change_max=p100,
                deviations_p50=float(np.median(deviation)),
                deviations_max=float(deviation.max()),
            )
    if options.out:
        results.write(options.out)
    return results


def _scores(case: Case, seed: int, options: argparse.Namespace) -> tuple[np.ndarray, np.ndarray]:
    """Raw component and z of every channel under one seed."""
    count = options.own if case.own else options.channels
    vision = clip_like(range(count), PATCHES, options.dim, pool=POOL, seed=options.seed)
    settings: dict[str, Any] = {"s_null": "rotation-shared", f"{case.component}_null": case.null}
    given: dict[str, Any] = {}
    if case.component == "q":
        given["labels"] = vision.labels
    if case.component == "d":
        named = words(CONCEPTS, options.dim, "vocabulary", seed=options.seed)
        bank = words(3 * CONCEPTS, options.dim, "bank", seed=options.seed)
        given["text_embeddings"], given["concept_ids"] = named.embeddings, named.concepts
        given["unrelated_text_embeddings"] = bank.embeddings
        given["unrelated_concept_ids"] = bank.concepts
    config = ScoreConfig(**settings, replicates=options.replicates, seed=seed)
    scores = psi.score(vision.embeddings, pool=vision.pool, config=config, device="cpu", **given)
    return getattr(scores, case.component).numpy(), getattr(scores, f"{case.component}_z").numpy()


if __name__ == "__main__":
    main()
