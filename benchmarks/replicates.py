"""What more draws cost: M = 1000 against M = 20, in seconds and in memory.

    python -m benchmarks.replicates --out benchmarks/results

Nulls of S that differ by channel (``rotation-samples``, ``rotation-tangent``) cluster M sets for
every channel: M = 1000 must cost at most 50 times M = 20, and stay within 4 GiB. Nulls that are
the same for all channels (``rotation``, ``pool``, ``neighborhood``) cluster M sets once: M = 1000
must cost little more than a call without a null, which ``rotation-shared`` stands for (it draws
nothing). ``table_seconds`` is what 64 channels cost more than without a null, and
``more_per_channel`` what every further channel does. Memory is the peak of a whole process that
makes the data and scores them.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import psi_engine as psi
from benchmarks.harness import SEEDINGS, Results, Work, in_fresh_process, interleave, spread
from benchmarks.problems import Vision, Words, clip_like, words
from psi_engine.config import ScoreConfig

OWN = ("rotation-samples", "rotation-tangent")
FEW, MANY = 20, 1000
GOAL_TIMES = 50
GOAL_BYTES = 4 << 30
PATCHES = 50
POOL = 4096
CONCEPTS = 267
TABLE_CHANNELS = 64


class Case(NamedTuple):
    """Nulls of S and D; no D where None."""

    s: str
    d: str | None


NO_NULL = {"S": Case("rotation-shared", None), "S D": Case("rotation-shared", "pool")}
"""What a call without nulls costs, at the fewest draws of D there are, 2."""

SHARED = (
    Case("rotation", None),
    Case("pool", None),
    Case("neighborhood", None),
    Case("pool", "text-rotation"),
    Case("pool", "pool"),
    Case("neighborhood", "neighborhood"),
)


def main(arguments: Sequence[str] | None = None) -> Results:
    """Print and write one row per null."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="folder for replicates.csv and replicates.json")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--own", type=int, default=48, help="channels under nulls of their own")
    parser.add_argument("--channels", type=int, default=3072, help="channels under shared nulls")
    parser.add_argument("--many", type=int, default=MANY, help="draws compared with 20")
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    results = Results("replicates", vars(options))
    _own(options, results)
    _memory(options, results)
    _shared(options, results)
    if options.out:
        results.write(options.out)
    return results


def _own(options: argparse.Namespace, results: Results) -> None:
    """Time nulls that differ by channel."""
    vision = clip_like(range(options.own), PATCHES, options.dim, pool=POOL, seed=options.seed)
    for null in OWN:
        few, many = (partial(_score, vision, null, None, m, options) for m in (FEW, options.many))
        taken = interleave({"few": Work(few), "many": Work(many, few)}, options.rounds)
        short, long = (np.array([r.seconds for r in taken[name]]) for name in ("few", "many"))
        times = spread((long / short).tolist())
        results.add(
            what="own null",
            parts="S",
            null=null,
            channels=options.own,
            draws=options.many,
            seconds=spread(long.tolist()),
            seconds_at_20=spread(short.tolist()),
            times=times,
        )
        most = GOAL_TIMES * options.many / MANY
        print(f"  goal at most {most:g}x: {'reached' if times.p50 <= most else 'missed'}")


def _memory(options: argparse.Namespace, results: Results) -> None:
    """Measure peak memory: few channels with all draws, and all channels with few."""
    for null in OWN:
        for channels, draws in ((options.own, options.many), (options.channels, FEW)):
            about = {"s_null": null, "replicates": draws, "channels": channels}
            _, peak = in_fresh_process(_score_afresh, about, options)
            _add_peak(results, null, channels, draws, peak)
    # every draw of every channel, made as always but clustered cheaply: the clock is not read
    quick = {"k_min": 2, "k_max": 2, "restarts": 1}
    about = {"s_null": OWN[0], "replicates": max(FEW, options.many // 10), **quick}
    _, peak = in_fresh_process(_score_afresh, about | {"channels": options.channels}, options)
    _add_peak(results, OWN[0], options.channels, about["replicates"], peak, "k = 2, 1 seeding")


def _add_peak(
    results: Results, null: str, channels: int, draws: int, peak: int, note: str = ""
) -> None:
    results.add(
        what="peak memory", null=null, channels=channels, draws=draws, bytes=peak, note=note
    )
    verdict = "reached" if peak <= GOAL_BYTES else "missed"
    print(f"  goal at most 4 GiB: {verdict} with {peak / 2**30:.2f} GiB")


def _score_afresh(about: dict[str, Any], options: argparse.Namespace) -> None:
    """Make the data and score them, in a process of its own."""
    settings = dict(about)
    channels = range(settings.pop("channels"))
    vision = clip_like(channels, PATCHES, options.dim, pool=POOL, seed=options.seed)
    config = ScoreConfig(**{"restarts": SEEDINGS} | settings)
    psi.score(vision.embeddings, pool=vision.pool, config=config, device=options.device)


def _shared(options: argparse.Namespace, results: Results) -> None:
    """Time nulls that all channels share: their tables once, then each channel."""
    vision = clip_like(range(options.channels), PATCHES, options.dim, pool=POOL, seed=options.seed)
    few = min(TABLE_CHANNELS, options.channels - 1)
    part = vision._replace(embeddings=vision.embeddings[:few], labels=vision.labels[:few])
    texts = words(CONCEPTS, options.dim, "vocabulary", seed=options.seed)
    works = {}
    for case in (*NO_NULL.values(), *SHARED):
        draws = options.many if case in SHARED else 2
        for name, data in (("few", part), ("all", vision)):
            works[f"{name} {case}"] = Work(
                partial(_score, data, *case, draws, options, texts),
                partial(_score, part, *case, FEW, options, texts),
            )
    taken = interleave(works, options.rounds)
    seconds = {name: np.array([r.seconds for r in rounds]) for name, rounds in taken.items()}
    for parts, case in NO_NULL.items():
        none = seconds[f"all {case}"].tolist()
        results.add(what="no null", parts=parts, channels=options.channels, seconds=spread(none))
    for case in SHARED:
        parts = "S D" if case.d else "S"
        none_few, none = (seconds[f"{name} {NO_NULL[parts]}"] for name in ("few", "all"))
        whole, table = seconds[f"all {case}"], seconds[f"few {case}"] - none_few
        each = (whole - none - table) / (options.channels - few)
        results.add(
            what="shared null",
            parts=parts,
            null=case.s,
            d_null=case.d,
            channels=options.channels,
            draws=options.many,
            seconds=spread(whole.tolist()),
            times=spread((whole / none).tolist()),
            table_seconds=spread(table.tolist()),
            more_per_channel=spread(each.tolist()),
        )


def _score(
    vision: Vision,
    s_null: str,
    d_null: str | None,
    draws: int,
    options: argparse.Namespace,
    texts: Words | None = None,
) -> None:
    config = ScoreConfig(
        s_null=s_null, d_null=d_null or "pool", replicates=draws, restarts=SEEDINGS
    )
    given = {}
    if d_null and texts is not None:
        given = {"text_embeddings": texts.embeddings, "concept_ids": texts.concepts}
    psi.score(vision.embeddings, pool=vision.pool, config=config, device=options.device, **given)


if __name__ == "__main__":
    main()
