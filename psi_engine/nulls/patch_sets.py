"""Tables of S, D and clarity over sets of pool patches, for the nulls that draw such sets.

A family says which patches make up each set (positions in the pool, one row per replicate).
Nothing here depends on a channel but its number of patches n and of clusters k, so every table
is computed once per call.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from psi_engine.nulls.base import Call, clarity_of
from psi_engine.ops.clustering import cluster
from psi_engine.ops.exact import gram
from psi_engine.scores.distinctness import distinctness

Family = Callable[[int, Call], Tensor]
"""``family(n, call)``: int64 (replicates, n), positions in the pool of each set's patches."""


class _Part(NamedTuple):
    keys: Tensor
    units: Tensor
    grams: Tensor


def separability_table(family: Family, n: int, call: Call) -> Tensor:
    """S of the family's sets of n patches: float64 (replicates,)."""
    return call.once(
        (family, "s", n),
        lambda: torch.cat(
            [call.separability(part.grams, part.keys).score for part in _parts(family, n, call)]
        ),
    )


def clarity_table(family: Family, n: int, call: Call) -> Tensor:
    """Mean cosine of the family's sets of n patches: float64 (replicates,)."""
    return call.once(
        (family, "clarity", n),
        lambda: torch.cat([clarity_of(part.grams) for part in _parts(family, n, call)]),
    )


def distinctness_table(family: Family, n: int, k: int, call: Call) -> Tensor:
    """D of the family's sets of n patches clustered into k: float64 (replicates,)."""
    texts, config = call.texts, call.config
    if texts is None:
        raise ValueError("a D null needs text embeddings")

    def compute() -> Tensor:
        values = []
        for part in _parts(family, n, call):
            found = cluster(
                part.grams,
                part.keys,
                k,
                solver=config.solver,
                restarts=config.restarts,
                backend=call.backend,
                memory=call.memory,
            )
            values.append(distinctness(part.units, found.assignments, k, texts, config.d_measure))
        return torch.cat(values)

    return call.once((family, "d", n, k), compute)


def _parts(family: Family, n: int, call: Call) -> Iterator[_Part]:
    positions = call.once((family, "positions", n), lambda: family(n, call))
    rows = 0 if call.texts is None else len(call.texts.rows)
    each = n * (40 * call.pool.dim + 16 * n) + 12 * call.config.k_max * (rows + call.pool.dim)
    for part in call.replicates().split(call.chunk(each)):
        units = call.pool.take(positions[part])
        yield _Part(call.keys("null.sets.solve", n, part), units, gram(units))
