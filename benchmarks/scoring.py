"""S, Q and D of a layer: psi-engine against the loops a user would write instead.

    python -m benchmarks.scoring --out benchmarks/results

Like for like: 50 patches, 512 dimensions, k = 2..5, 20 draws per null, and a null of S that
clusters every draw of every channel again. psi-engine scores all channels; the loops score a few,
evenly spaced, and are scaled by their number: they share nothing between channels, so their cost
is linear. Every loop runs twice, as one process and as one process per core.

S, Q and D of the loops are timed apart inside them. psi-engine's S is a call without labels and
texts, Q its two operations alone, D what a call with texts takes more than one without where S is
made cheap (one k, one seeding, a null that draws nothing); all three on some of the channels.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

import psi_engine as psi
from benchmarks.harness import SEEDINGS, Results, Round, Spread, Work, interleave, spread
from benchmarks.routes import CLUSTERS, Crew, Loop, Size, gap, objective
from psi_engine.config import ScoreConfig
from psi_engine.ops.clustering import cluster
from psi_engine.ops.contingency import normalized_mutual_information, permutation_nmi

GOALS = {"scikit-learn": 100, "faiss": 5}
"""How many times faster a loop's whole score should be made."""

_TOLERANCE = 1e-6


class Scorer:
    """``psi.score`` on the benchmark's data, with the paper's Q and D."""

    def __init__(self, size: Size, device: str = "cpu") -> None:
        self.size, self.device = size, device
        self.vision = size.vision(range(size.channels), size.pool)
        self.vocabulary, self.bank = size.texts()

    def run(
        self, parts: str = "SQD", channels: slice | Sequence[int] = slice(None), **changes: Any
    ) -> psi.Scores:
        """Score some channels: S always, Q and D where asked."""
        options: dict[str, Any] = {
            "s_null": self.size.s_null,
            "d_null": "unrelated-text",
            "d_measure": "gap",
            "d_level": "prompt",
            "replicates": self.size.replicates,
            "restarts": SEEDINGS,
        }
        given: dict[str, Any] = {}
        if "Q" in parts:
            given["labels"] = self.vision.labels[channels]
        if "D" in parts:
            given["text_embeddings"] = self.vocabulary.embeddings
            given["concept_ids"] = self.vocabulary.concepts
            given["unrelated_text_embeddings"] = self.bank.embeddings
            given["unrelated_concept_ids"] = self.bank.concepts
        return psi.score(
            self.vision.embeddings[channels],
            pool=self.vision.pool,
            config=ScoreConfig(**options | changes),
            device=self.device,
            **given,
        )


class Agreement(NamedTuple):
    """How far psi-engine is from a peer's arithmetic, and how good its optima are."""

    s: float  # largest difference of S for psi-engine's own assignments
    q: float
    d: float
    better: float  # share of (channel, k) where its objective is at least as good
    null_above: float  # mean over channels of its null mean of S minus the loop's


def agreement(scorer: Scorer, channels: Sequence[int], route: str) -> Agreement:
    """Score some channels both ways; same assignments must give the same S, Q and D.

    Raises
    ------
    SystemExit
        They do not.
    """
    loop = Loop(scorer.size, route, channels)
    theirs = loop.run()
    ours = scorer.run(channels=channels)
    apart = np.zeros((len(channels), 3))
    better = []
    for c, rows in enumerate(loop.vision.embeddings):
        labels = ours.assignments[c].numpy()
        inside = (np.unique(labels)[:, None] == labels).astype(np.float64)
        means = inside @ rows
        means /= np.linalg.norm(means, axis=1, keepdims=True)
        expected = (
            max(loop.route.silhouette(rows, labels), 0.0),
            loop.route.nmi(labels, loop.vision.labels[c][None])[0],
            gap(means @ loop.texts.T),
        )
        found = [float(getattr(ours, part)[c]) for part in "sqd"]
        apart[c] = np.abs(np.subtract(found, expected))
        gram = torch.from_numpy(rows @ rows.T)[None]
        for k in CLUSTERS:
            mine = float(cluster(gram, torch.tensor([channels[c]]), k).objective)
            peer = objective(rows, loop.route.fit(rows, k))
            better.append(mine >= peer * (1 - _TOLERANCE))
    worst = apart.max(0)
    if worst.max() > _TOLERANCE:
        raise SystemExit(
            f"psi-engine and {route} disagree by {worst} in S, Q, D: nothing was timed"
        )
    null = float(np.mean(ours.s_null_mean.numpy() - [x.s_null.mean() for x in theirs]))
    return Agreement(*worst.tolist(), float(np.mean(better)), null)


def compare(size: Size, crew: Crew, options: argparse.Namespace, results: Results) -> None:
    """Check agreement, time everything in turns, add the rows of one null of S."""
    scorer = Scorer(size, options.device)
    chosen = {
        route: np.linspace(0, size.channels - 1, count).astype(int).tolist()
        for route, count in (("scikit-learn", options.scikit_learn), ("faiss", options.faiss))
    }
    for route, channels in chosen.items():
        found = agreement(scorer, channels, route)
        results.add(null=size.s_null, what="agreement", route=route, **found._asdict())
    few = min(options.part, size.channels)
    works = _own_works(scorer, slice(0, few))
    for route, channels in chosen.items():
        for count in sorted({1, options.processes}):
            task = (size, route, channels, count)
            works[f"{route} {count}"] = Work(partial(crew.run, *task), partial(crew.warm_up, *task))
    taken = interleave(works, options.rounds)
    ours = _own_seconds(taken, size.channels / few)
    for what, seconds in ours.items():
        results.add(null=size.s_null, what=what, route="psi-engine", seconds=spread(seconds))
    for route, channels in chosen.items():
        for count in sorted({1, options.processes}):
            theirs = _loop_seconds(taken[f"{route} {count}"], size.channels / len(channels))
            for what in theirs if count == 1 else ("SQD",):
                times = _ratio(theirs[what], ours[what])
                results.add(
                    null=size.s_null,
                    what=what,
                    route=route,
                    processes=count,
                    channels=len(channels),
                    seconds=spread(theirs[what]),
                    times=times,
                )
                if what == "SQD":
                    verdict = "reached" if times.p50 >= GOALS[route] else "missed"
                    print(f"  goal {GOALS[route]}x {route}: {verdict} at {times.p50:.1f}x")


def _own_works(scorer: Scorer, part: slice) -> dict[str, Work]:
    """Calls that time psi-engine: the whole score of all channels, parts of it on some."""
    cheap = {"s_null": "rotation-shared", "k_min": 3, "k_max": 3, "restarts": 1}
    assignments = scorer.run("S", part, **cheap).assignments
    labels = torch.from_numpy(scorer.vision.labels[part])
    keys = torch.arange(len(labels))

    def q_alone() -> None:
        normalized_mutual_information(assignments, labels)
        permutation_nmi(assignments, labels, keys, scorer.size.replicates)

    return {
        "psi": Work(scorer.run, lambda: scorer.run(channels=part)),
        "psi S": Work(lambda: scorer.run("S", part)),
        "psi Q": Work(q_alone),
        "psi cheap": Work(lambda: scorer.run("S", part, **cheap)),
        "psi cheap D": Work(lambda: scorer.run("SD", part, **cheap)),
    }


def _own_seconds(taken: dict[str, list[Round]], scale: float) -> dict[str, list[float]]:
    """psi-engine's seconds for all channels, by round."""
    of = {name: np.array([r.seconds for r in rounds]) for name, rounds in taken.items()}
    return {
        "SQD": of["psi"].tolist(),
        "S": (scale * of["psi S"]).tolist(),
        "Q": (scale * of["psi Q"]).tolist(),
        "D": (scale * (of["psi cheap D"] - of["psi cheap"])).tolist(),
    }


def _loop_seconds(rounds: list[Round], scale: float) -> dict[str, list[float]]:
    """A loop's seconds for all channels, by round: the wall's, and those inside the channels."""
    seconds = {"SQD": [scale * r.seconds for r in rounds]}
    for at, what in enumerate("SQD"):
        seconds[what] = [scale * float(sum(c.seconds[at] for c in r.value)) for r in rounds]
    return seconds


def _ratio(above: Sequence[float], below: Sequence[float]) -> Spread:
    """Ratios by round; NaN where the difference below drowned in the clock's noise."""
    pairs = zip(above, below, strict=True)
    return spread([a / b if b > 0 else np.nan for a, b in pairs])


def main(arguments: Sequence[str] | None = None) -> Results:
    """Print and write one row per null, part and route."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="folder for scoring.csv and scoring.json")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--channels", type=int, default=3072, help="channels psi-engine scores")
    parser.add_argument("--part", type=int, default=512, help="channels for S, Q and D apart")
    parser.add_argument("--scikit-learn", type=int, default=8, help="channels of that loop")
    parser.add_argument("--faiss", type=int, default=24, help="channels of that loop")
    parser.add_argument(
        "--processes", type=int, default=os.cpu_count() or 1, help="of the second run of a loop"
    )
    parser.add_argument("--nulls", nargs="+", default=["rotation-samples", "rotation-tangent"])
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--device", default="cpu", help="where psi-engine runs")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    results = Results("scoring", vars(options))
    crew = Crew(options.processes)
    for null in options.nulls:
        size = Size(options.channels, dim=options.dim, s_null=null, seed=options.seed)
        compare(size, crew, options, results)
    crew.close()
    if options.out:
        results.write(options.out)
    return results


if __name__ == "__main__":
    main()
