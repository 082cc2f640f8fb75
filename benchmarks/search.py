"""Search over prototypes: every row compared, or the likeliest parts of the set.

    python -m benchmarks.search --out benchmarks/results

Prototypes are generated: 2000 concepts, each row one of them and a part of its own, variance that
falls as 1/rank over the dimensions. Queries are fresh draws of the same kind, as ``--like`` has
them, and rows further from any prototype, as texts are. The index is built and written in one
process, with all cores, and read and asked in another, with one. Recall is held against faiss's
own exact search. Peak memory is of the whole process: interpreter and libraries are about 0.5 GB.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.harness import Results, in_fresh_process, spread, timed
from benchmarks.problems import generator, prototypes, unit
from psi_engine.ops.exact import unit_rows
from psi_engine.retrieval import nearest as module
from psi_engine.retrieval.nearest import Nearest

ROUTES = {"exact": 1 << 62, "parts": 0}
"""From how many rows on a set is cut into parts."""

GOAL = 20.0
"""Milliseconds of one query on one core at 10^6 rows."""

TOP = 10
_BATCH = 100


def build(rows: int, dim: int, seed: int, route: str, path: Path) -> dict[str, float]:
    """Build and write the index; seconds of each, and the bytes of the file."""
    module.APPROXIMATE_FROM = ROUTES[route]
    blocks = [unit_rows(torch.from_numpy(x)).rows for x in prototypes(rows, dim, "rows", seed=seed)]
    made = timed(partial(Nearest.build, blocks, dim))
    written = timed(partial(made.value.write, path))
    return {
        "build_seconds": made.seconds,
        "write_seconds": written.seconds,
        "file_gb": path.stat().st_size / 1e9,
    }


def ask(dim: int, seed: int, route: str, path: Path, rounds: int) -> dict[str, Any]:
    """Read the index and ask it, on one core: milliseconds of a query, recall of both kinds."""
    faiss = module.faiss
    faiss.omp_set_num_threads(1)
    torch.set_num_threads(1)
    module.APPROXIMATE_FROM = ROUTES[route]
    read = timed(partial(Nearest.read, path))
    held = read.value
    alike = next(prototypes(_BATCH, dim, "queries", seed=seed))
    away = generator(seed, "texts").standard_normal((_BATCH, dim)) / np.sqrt(2 * dim)
    kinds = {"like": alike, "text": unit(alike + away)}
    queries = {name: unit_rows(torch.from_numpy(x)).rows for name, x in kinds.items()}
    found: dict[str, Any] = {"read_seconds": read.seconds}
    for name, rows in queries.items():
        _, true = faiss.knn(rows.numpy(), held.rows.numpy(), TOP, metric=faiss.METRIC_INNER_PRODUCT)
        mine, _ = held.nearest(rows, TOP)
        shared = [len({*a} & {*b}) / TOP for a, b in zip(mine.tolist(), true.tolist(), strict=True)]
        found[f"recall_{name}"] = float(np.mean(shared))
    if route == "exact" and min(found["recall_like"], found["recall_text"]) < 1:
        raise SystemExit(f"the exact search misses rows ({found}): nothing was timed")
    every = torch.cat(list(queries.values()))
    one = [timed(partial(held.nearest, query[None], TOP)).seconds for query in every]
    many = [timed(partial(held.nearest, queries["like"], TOP)).seconds for _ in range(rounds)]
    found["query_ms"] = spread([1e3 * x for x in one])
    found["batch_query_ms"] = spread([1e3 * x / _BATCH for x in many])
    return found


def main(arguments: Sequence[str] | None = None) -> Results:
    """Print and write one row per size and route."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="folder for search.csv and search.json")
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=5, help="of the batch of 100 queries")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    results = Results("search", vars(options) | {"probes": module.PROBES})
    for rows in options.rows:
        for route in ROUTES:
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "index.faiss"
                made, build_peak = in_fresh_process(
                    build, rows, options.dim, options.seed, route, path
                )
                asked, ask_peak = in_fresh_process(
                    ask, options.dim, options.seed, route, path, options.rounds
                )
            peaks = {"build_peak_gb": build_peak / 1e9, "ask_peak_gb": ask_peak / 1e9}
            results.add(rows=rows, route=route, **asked, **made, **peaks)
            if rows >= 1_000_000 and route == "parts":
                verdict = "reached" if asked["query_ms"].p50 < GOAL else "missed"
                print(f"  goal {GOAL:.0f} ms: {verdict} at {asked['query_ms'].p50:.1f} ms")
    if options.out:
        results.write(options.out)
    return results


if __name__ == "__main__":
    main()
