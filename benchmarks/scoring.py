"""S, Q and D of a layer: psi-engine against what a user would write with other packages.

    python -m benchmarks.scoring --out benchmarks/results

Like for like: 50 patches, 512 dimensions, k = 2..5, 20 draws per null, and a null of S that
clusters every draw of every channel again. psi-engine scores all channels; the others score a few,
evenly spaced, and are scaled by their number: loops share nothing between channels, so their cost
is linear; a route that takes many sets at once is scaled as if its cost were. Loops run twice, as
one process and as one process per core, each with one thread;
``torch_kmeans``, which takes many sets at once, and what runs on a GPU in one process with all
threads. Peers that are not installed, or want a GPU, have a row that says so (``left_out``).

S, Q and D of the others are timed apart inside them. psi-engine's S is a call without labels and
texts, Q its two operations alone, D what a call with texts takes more than one without where S is
made cheap (one k, one seeding, a null that draws nothing); all three on some of the channels, and
scaled. Nothing is timed unless the same assignments give the same scores; how many objectives are
at least as good, and how far the null of S is above the peer's, stand in the rows.
``polysemanticity`` is SemanticLens' measure, two clusters and no null, from both sides.
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
from benchmarks.fits import objective
from benchmarks.harness import SEEDINGS, Results, Round, Spread, Work, interleave, spread
from benchmarks.peers import agreement as measures_agree
from benchmarks.peers import peers as measures
from benchmarks.routes import CLUSTERS, ROUTES, Crew, Loop, Size, gap, missing, warm_up
from psi_engine.config import ScoreConfig
from psi_engine.ops.clustering import cluster
from psi_engine.ops.contingency import normalized_mutual_information, permutation_nmi
from psi_engine.ops.silhouette import silhouette

GOALS = {"scikit-learn": 100, "faiss": 5}
"""How many times faster a loop's whole score should be made."""

LENS = ("psi polysemanticity", "semanticlens polysemanticity")
"""The works that time the same measure here and in SemanticLens."""

AS_GOOD = 0.95
"""Share of problems in which an objective should be at least a peer's."""

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

    s: float  # largest difference of S, for psi-engine's own assignments and for the peer's
    q: float
    d: float
    better: float  # share of (channel, k) where its objective is at least as good
    problems: int  # (channel, k) compared
    null_above: float  # mean over channels of its null mean of S minus the loop's


def agreement(scorer: Scorer, channels: Sequence[int], route: str) -> Agreement:
    """Score some channels both ways; same assignments must give the same S, Q and D.

    Raises
    ------
    SystemExit
        They do not.
    """
    loop = Loop(scorer.size, route, channels, scorer.device)
    sets, way = loop.vision.embeddings, loop.route
    theirs = loop.run()
    ours = scorer.run(channels=channels)
    labels = ours.assignments.numpy()
    s_there = np.maximum(way.silhouette(sets, labels, loop.device), 0.0)
    apart = [np.abs(ours.s.numpy() - s_there).max(), 0.0, 0.0]
    for c, rows in enumerate(sets):
        inside = (np.unique(labels[c])[:, None] == labels[c]).astype(np.float64)
        means = inside @ rows
        means /= np.linalg.norm(means, axis=1, keepdims=True)
        q_there = way.nmi(labels[c], loop.vision.labels[c][None])[0]
        # NaN stays NaN
        apart[1] = np.maximum(apart[1], abs(float(ours.q[c]) - q_there))
        apart[2] = np.maximum(apart[2], abs(float(ours.d[c]) - gap(means @ loop.texts.T)))
    grams = torch.from_numpy(sets @ sets.transpose(0, 2, 1))
    keys, better = torch.tensor(channels), []
    for k in CLUSTERS:
        found = way.fit(sets, k, loop.device)
        here = silhouette(grams, torch.from_numpy(found).to(torch.int64)).mean(1).numpy()
        there = way.silhouette(sets, found, loop.device)
        apart[0] = np.maximum(apart[0], np.abs(here - there).max())
        mine = cluster(grams, keys, k, restarts=SEEDINGS).objective.tolist()
        peers = [objective(*pair) for pair in zip(sets, found, strict=True)]
        better += [a >= b * (1 - _TOLERANCE) for a, b in zip(mine, peers, strict=True)]
    worst = [float(x) for x in apart]
    if not all(x <= _TOLERANCE for x in worst):  # NaN is no agreement
        raise SystemExit(
            f"psi-engine and {route} disagree by {worst} in S, Q, D: nothing was timed"
        )
    null = float(np.mean(ours.s_null_mean.numpy() - [x.s_null.mean() for x in theirs]))
    return Agreement(*worst, float(np.mean(better)), len(better), null)


class Peer(NamedTuple):
    """A route as it is timed: so many channels of it, in so many processes."""

    route: str
    channels: list[int]
    processes: int

    @property
    def name(self) -> str:
        """Its name among the works."""
        return f"{self.route} {self.processes}"


def compare(size: Size, crew: Crew, options: argparse.Namespace, results: Results) -> None:
    """Check agreement, time everything in turns, add the rows of one null of S."""
    scorer = Scorer(size, options.device)
    peers = []
    for route, asked in ((name, getattr(options, _option(name))) for name in ROUTES):
        if not asked:
            continue
        reason = missing(ROUTES[route].needs, ROUTES[route].gpu, options.device)
        if reason:
            results.add(null=size.s_null, what="agreement", route=route, left_out=reason)
            continue
        channels = np.linspace(0, size.channels - 1, asked).astype(int).tolist()
        found = agreement(scorer, channels, route)
        results.add(null=size.s_null, what="agreement", route=route, **found._asdict())
        verdict = "reached" if found.better >= AS_GOOD else "missed"
        print(f"  goal as good as {route} in {AS_GOOD:.0%}: {verdict} at {found.better:.1%}")
        most = 1 if _runs_here(route, options.device) else min(options.processes, asked)
        peers += [Peer(route, channels, n) for n in sorted({1, most})]
    few = min(options.part, size.channels)
    works = _own_works(scorer, slice(0, few))
    for peer in peers:
        works[peer.name] = _work(peer, size, crew, options.device)
    lens = _semanticlens(scorer, options.semanticlens, results)
    taken = interleave(works | lens, options.rounds)
    ours = _own_seconds(taken, size.channels / few)
    for what, seconds in ours.items():
        scored = size.channels if what == "SQD" else few
        about = {"null": size.s_null, "what": what, "route": "psi-engine", "channels": scored}
        results.add(**about, seconds=spread(seconds))
    for peer in peers:
        _add_peer(peer, taken[peer.name], ours, size, options.device, results)
    if lens:
        _add_semanticlens(taken, size, options.semanticlens, results)


def _option(route: str) -> str:
    return route.replace("-", "_")


def _runs_here(route: str, device: str) -> bool:
    """Whether a route has the machine to itself: one process with all threads, or the GPU."""
    way = ROUTES[route]
    return way.batched or way.gpu or (route == "fast-pytorch-kmeans" and device != "cpu")


def _work(peer: Peer, size: Size, crew: Crew, device: str) -> Work:
    if _runs_here(peer.route, device):
        loop = Loop(size, peer.route, peer.channels, device)
        return Work(loop.run, partial(warm_up, size, peer.route, peer.channels, device))
    task = (size, peer.route, peer.channels, peer.processes)
    return Work(partial(crew.run, *task), partial(crew.warm_up, *task))


def _add_peer(
    peer: Peer,
    rounds: list[Round],
    ours: dict[str, list[float]],
    size: Size,
    device: str,
    results: Results,
) -> None:
    """Add a route's seconds for all channels: the whole score, alone also its parts."""
    theirs = _loop_seconds(rounds, size.channels / len(peer.channels))
    for what in theirs if peer.processes == 1 else ("SQD",):
        times = _ratio(theirs[what], ours[what])
        results.add(
            null=size.s_null,
            what=what,
            route=peer.route,
            processes=peer.processes,
            threads=torch.get_num_threads() if _runs_here(peer.route, device) else 1,
            channels=len(peer.channels),
            seconds=spread(theirs[what]),
            times=times,
        )
        if what == "SQD" and peer.route in GOALS:
            goal = GOALS[peer.route]
            verdict = "reached" if times.p50 >= goal else "missed"
            print(f"  goal {goal}x {peer.route}: {verdict} at {times.p50:.1f}x")


def _semanticlens(scorer: Scorer, channels: int, results: Results) -> dict[str, Work]:
    """Works for the polysemanticity of SemanticLens, two clusters and no null, on both sides."""
    about = {"null": "none", "what": "agreement", "route": "semanticlens"}
    reason = missing(("semanticlens",))
    if not channels or reason:
        if channels:
            results.add(**about, left_out=reason)
        return {}
    x = torch.from_numpy(scorer.vision.embeddings[:channels])
    peer = measures()["polysemanticity"]
    results.add(**about, channels=len(x), **measures_agree(x, "polysemanticity", peer))
    works = (Work(partial(side, x)) for side in (peer.ours, peer.theirs))
    return dict(zip(LENS, works, strict=True))


def _add_semanticlens(
    taken: dict[str, list[Round]], size: Size, channels: int, results: Results
) -> None:
    scale = size.channels / min(channels, size.channels)
    here, there = ([scale * r.seconds for r in taken[name]] for name in LENS)
    about = {"null": "none", "what": "polysemanticity"}
    results.add(**about, route="psi-engine", seconds=spread(here))
    results.add(
        **about,
        route="semanticlens",
        processes=1,
        threads=torch.get_num_threads(),
        channels=min(channels, size.channels),
        seconds=spread(there),
        times=_ratio(there, here),
    )


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
    for name, route in ROUTES.items():
        text = f"channels that {name} scores; 0 leaves it out"
        option = "--" + name.replace("_", "-")
        parser.add_argument(option, type=int, default=route.channels, help=text)
    text = "channels whose polysemanticity it computes; 0 leaves it out"
    parser.add_argument("--semanticlens", type=int, default=64, help=text)
    parser.add_argument(
        "--processes", type=int, default=os.cpu_count() or 1, help="of the second run of a loop"
    )
    parser.add_argument("--nulls", nargs="+", default=["rotation-samples", "rotation-tangent"])
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--device", default="cpu", help="of psi-engine, torch and cuML")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    meant = Size()
    fixed = {"replicates": meant.replicates, "patches": meant.patches, "seedings": SEEDINGS}
    results = Results("scoring", vars(options) | fixed, keep=options.out)
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
