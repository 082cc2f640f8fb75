"""Optima of the solvers: psi-engine's Hartigan and Lloyd, scikit-learn, faiss, problem by problem.

    python -m benchmarks.solver --out benchmarks/results [--embeddings FILE ...]

The objective is that of cosine K-means, Σ_j ‖Σ_{i∈C_j} z_i‖, in float64, of every solver's
labels. faiss maximises it; scikit-learn's K-means maximises the Euclidean objective of the same
unit rows, so against it the rows compare what a user would get, not two runs of one algorithm.
``at_least_PEER`` is the share of problems in which a solver is as good as the peer or better,
``at_best`` as good as the best that any of them or Hartigan with 200 seedings found.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from threadpoolctl import threadpool_limits

from benchmarks.fits import fit_faiss, fit_scikit_learn, objective
from benchmarks.harness import SEEDINGS, Results
from benchmarks.problems import blobs, clip_like, from_file, one_mode, sphere
from benchmarks.routes import CLUSTERS
from psi_engine.config import Solver
from psi_engine.ops.clustering import cluster

OURS: tuple[Solver, ...] = ("hartigan", "lloyd")
PEERS = {"scikit-learn": fit_scikit_learn, "faiss": fit_faiss}
GOAL = 0.95
"""Share of problems in which Hartigan should be at least as good as each peer, for every k."""

SAME = 1e-6
"""Relative difference of objectives that counts as none."""

_MANY_SEEDINGS = 200
_PATCHES = 50

Make = Callable[..., np.ndarray]
GENERATED: dict[str, Make] = {
    "clip-like": lambda problems, patches, dim, seed: (
        clip_like(range(problems), patches, dim, seed=seed).embeddings
    ),
    "one mode": one_mode,
    "sphere": sphere,
    "blobs": blobs,
}


def objectives(sets: np.ndarray, k: int) -> dict[str, np.ndarray]:
    """Objective (problems,) of each solver, and of the best labels known."""
    grams = torch.from_numpy(sets @ sets.transpose(0, 2, 1))
    keys = torch.arange(len(sets))

    def ours(solver: Solver, restarts: int) -> np.ndarray:
        labels = cluster(grams, keys, k, solver=solver, restarts=restarts).assignments.numpy()
        return np.array([objective(*pair) for pair in zip(sets, labels, strict=True)])

    found = {solver: ours(solver, SEEDINGS) for solver in OURS}
    for name, fit in PEERS.items():
        found[name] = np.array([objective(rows, fit(rows, k)) for rows in sets])
    found["best"] = np.maximum.reduce([*found.values(), ours("hartigan", _MANY_SEEDINGS)])
    return found


def share_at_least(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Share of problems in which ours is as good as theirs, up to rounding."""
    return float((ours >= theirs * (1 - SAME)).mean())


def main(arguments: Sequence[str] | None = None) -> Results:
    """Print and write one row per data set, k and solver."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="folder for solver.csv and solver.json")
    parser.add_argument("--problems", type=int, default=200, help="problems per data set")
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument(
        "--embeddings",
        type=Path,
        nargs="+",
        default=[],
        help="npz or safetensors files with `embeddings` (channels, patches, dim)",
    )
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    results = Results("solver", vars(options))
    sources = {
        name: make(options.problems, _PATCHES, options.dim, seed=options.seed)
        for name, make in GENERATED.items()
    }
    sources |= {file.stem: from_file(file, options.problems) for file in options.embeddings}
    reached = True
    with threadpool_limits(1, "openmp"):
        for source, sets in sources.items():
            for k in CLUSTERS:
                reached &= _compare(source, sets, k, results)
    print(f"goal {GOAL:.0%} against each peer for every k: {'reached' if reached else 'missed'}")
    if options.out:
        results.write(options.out)
    return results


def _compare(source: str, sets: np.ndarray, k: int, results: Results) -> bool:
    """Add the rows of one data set and k; whether Hartigan reaches the goal there."""
    found = objectives(sets, k)
    for solver in (*OURS, *PEERS):
        against = {
            f"at_least_{peer}": share_at_least(found[solver], found[peer])
            for peer in PEERS
            if solver in OURS
        }
        below = found[solver] / found["best"]
        results.add(
            data=source,
            k=k,
            solver=solver,
            problems=len(sets),
            at_best=share_at_least(found[solver], found["best"]),
            median_of_best=float(np.median(below)),
            worst_of_best=float(below.min()),
            **against,
        )
    return all(share_at_least(found["hartigan"], found[peer]) >= GOAL for peer in PEERS)


if __name__ == "__main__":
    main()
