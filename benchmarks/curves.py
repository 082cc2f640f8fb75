"""Cost against size: seconds and peak memory for more channels, more patches, more draws.

    python -m benchmarks.curves --out benchmarks/results [--long]

Every row is a process of its own: it makes the data, calls once on little, reads how much memory
it holds, and scores. ``beyond_bytes`` is what its peak lies above that, results (``output_bytes``)
left out: the most that scoring held for itself, which ``--memory`` and 64 MiB are to bound. The
embeddings are views (see ``problems.moving_windows``): a million channels of 50 patches would be
100 GB, which no machine here has, and are read part by part. Every channel is read, normalised,
clustered and compared all the same.

Curves, all with one seeding: S of up to 10⁶ channels against the null that all share (``pool``,
M = 200); S, Q and D under shared nulls; S under a null that clusters every draw of every channel
again (``rotation-tangent``, M = 20; 10⁵ channels with ``--long``); all three against K patches,
under either kind of null; and against M draws.

``slope`` is that of log seconds over log cost, between any two sizes of the upper range (the
largest size and those at most 32 times smaller): the median of all pairs, and their 20th and 80th
percentile. Cost is the number of channels, the number of draws, and K² for patches: a Gram matrix
has K² entries, and a step of the solver looks at all. The rotations of a null that is made for
every channel take K³.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import fields
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

import psi_engine as psi
from benchmarks.goals import STEEPEST
from benchmarks.harness import (
    Results,
    Spread,
    device_peak,
    forget_peak,
    in_fresh_process,
    peak_memory,
    spread,
    timed,
)
from benchmarks.problems import clip_like, moving_windows, words
from psi_engine.config import ScoreConfig

UPPER = 32.0
NO_ARRAY = 64 << 20
"""Bytes that psi.score may hold beyond its budget: what is no array."""

POOL, CONCEPTS = 4096, 32
SEEDINGS = 1
"""Of the solver: slopes are at stake here, ``benchmarks.scoring`` times as many as it takes."""

_WARM = 8  # channels of the call that loads libraries and compiles
_POWERS = {"channels": 1, "patches": 2, "draws": 1}


class Size(NamedTuple):
    """What one row scores."""

    channels: int = 0
    patches: int = 50
    draws: int = 0


class Curve(NamedTuple):
    """One size that grows, the others, the nulls of S and what is scored."""

    grows: str
    null: str
    parts: str
    sizes: tuple[int, ...]
    others: Size

    def at(self, size: int) -> Size:
        """The size of one row."""
        return self.others._replace(**{self.grows: size})


def curves(long: bool, largest: int | None = None) -> list[Curve]:
    """All of them, no size above the largest where one is given."""
    many = (100, 1000, 10_000, 31_623, 100_000, 1_000_000)
    own = (100, 1000, 3162, 10_000, *((31_623, 100_000) if long else ()))
    patches = (20, 50, 100, 200, 500, 1000)
    draws = (20, 200, 1000, 3162, 10_000)
    found = [
        Curve("channels", "pool", "SQD", (1000, 3162, 10_000), Size(draws=200)),
        Curve("channels", "rotation-tangent", "S", own, Size(draws=20)),
        Curve("patches", "pool", "SQD", patches, Size(channels=64, draws=64)),
        Curve("patches", "rotation-tangent", "SQD", patches, Size(channels=8, draws=20)),
        Curve("draws", "pool", "SQD", draws, Size(channels=64)),
        Curve("draws", "rotation-tangent", "SQD", draws, Size(channels=8)),
        Curve("channels", "pool", "S", many, Size(draws=200)),  # last: it takes most
    ]
    if largest is None:
        return found
    return [c._replace(sizes=tuple(x for x in c.sizes if x <= largest)) for c in found]


def main(arguments: Sequence[str] | None = None) -> Results:
    """Print and write one row per size, and one per curve."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="folder for curves.csv and curves.json")
    parser.add_argument("--rounds", type=int, default=3, help="at most, of each size")
    parser.add_argument("--patience", type=float, default=3.0, help="seconds of a size's rounds")
    parser.add_argument("--memory", type=int, default=512, help="MiB that scoring may use")
    parser.add_argument("--largest", type=int, help="leave out what is larger")
    parser.add_argument("--long", action="store_true", help="own nulls of 10^5 channels too")
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    results = Results("curves", vars(options), keep=options.out)
    for curve in curves(options.long, options.largest):
        _measure(curve, options, results)
    if options.out:
        results.write(options.out)
    return results


def _measure(curve: Curve, options: argparse.Namespace, results: Results) -> None:
    about = {"curve": curve.grows, "null": curve.null, "parts": curve.parts}
    found, beyond = [], []
    bound = (options.memory << 20) + NO_ARRAY
    for size in curve.sizes:
        row, peak = in_fresh_process(score_afresh, curve.parts, curve.null, curve.at(size), options)
        found.append(row["seconds"].p50)
        beyond.append(row["beyond_bytes"])
        results.add(**about, what="size", **curve.at(size)._asdict(), **row, peak_bytes=peak)
    most = most_beyond(beyond)
    verdict = (
        "unknown"
        if most is None
        else (f"{'reached' if most <= bound else 'missed'} with {most / 2**20:.0f} MiB")
    )
    print(f"  goal at most {bound >> 20} MiB beyond results: {verdict}")
    power = _POWERS[curve.grows]
    slopes = pairwise_slopes(curve.sizes, found, power)
    if slopes is None:
        return
    reached = slopes.p50 <= STEEPEST
    upper = [size for size in curve.sizes if size * UPPER >= curve.sizes[-1]]
    results.add(**about, what="slope", power=power, smallest=upper[0], largest=upper[-1],
                slope=slopes, most_beyond_bytes=most, bound_bytes=bound)  # fmt: skip
    verdict = "reached" if reached else "missed"
    print(f"  goal slope at most {STEEPEST} in {curve.grows}^{power}: {verdict} at {slopes}")


def most_beyond(beyond: Sequence[int | None]) -> int | None:
    """The most bytes of any size; None where one is unknown, as it may have been more."""
    known = [x for x in beyond if x is not None]
    return max(known) if known and len(known) == len(beyond) else None


def pairwise_slopes(sizes: Sequence[int], seconds: Sequence[float], power: int) -> Spread | None:
    """Slopes of log seconds over log size^power of all pairs in the upper range; None without."""
    upper = [(n, t) for n, t in zip(sizes, seconds, strict=True) if n * UPPER >= sizes[-1]]
    steps = [np.log([b / a for a, b in zip(*pair, strict=True)]) for pair in combinations(upper, 2)]
    return spread([float(t / (power * n)) for n, t in steps]) if steps else None


def score_afresh(parts: str, null: str, size: Size, options: argparse.Namespace) -> dict[str, Any]:
    """Make the data and score it, in a process of its own."""
    embeddings, labels = moving_windows(size.channels, size.patches, options.dim, seed=options.seed)
    pool = clip_like([], 1, options.dim, pool=max(POOL, 10 * size.patches), seed=options.seed).pool
    texts = words(CONCEPTS, options.dim, "vocabulary", seed=options.seed)
    named = {"text_embeddings": texts.embeddings, "concept_ids": texts.concepts}

    def score(channels: slice, draws: int) -> int:
        config = ScoreConfig(
            s_null=null, replicates=draws, restarts=SEEDINGS, memory=options.memory << 20
        )
        given = ({"labels": labels[channels]} if "Q" in parts else {}) | (
            named if "D" in parts else {}
        )
        scores = psi.score(
            embeddings[channels], pool=pool, config=config, device=options.device, **given
        )
        values = (getattr(scores, field.name) for field in fields(scores))
        return sum(x.numel() * x.element_size() for x in values if isinstance(x, Tensor))

    score(slice(0, _WARM), 20)
    known = forget_peak()
    before = peak_memory()
    rounds = []
    began = time.perf_counter()
    while not rounds or (
        len(rounds) < options.rounds and time.perf_counter() - began < options.patience
    ):
        rounds.append(timed(lambda: score(slice(None), size.draws)))
    output = rounds[0].value
    seconds = spread([r.seconds for r in rounds])
    return {
        "rounds": len(rounds),
        "seconds": seconds,
        "before_bytes": before,
        "output_bytes": output,
        "beyond_bytes": max(0, peak_memory() - before - output) if known else None,
        "device_bytes": device_peak(),
        "microseconds_per_channel": 1e6 * seconds.p50 / size.channels,
    }


if __name__ == "__main__":
    main()
