"""Tables of S, D and clarity over sets of pool patches, for the nulls that draw such sets.

A family says which patches make up each set: positions in the pool, one row per set.
Nothing here depends on a channel but its number of patches n and of clusters k, so every table
is computed once per call.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from psi_engine.nulls.base import Call
from psi_engine.ops.exact import clarity_of, gram
from psi_engine.ops.separability import PooledSeparability, separability
from psi_engine.scores.distinctness import distinctness

Family = Callable[[int, Call], Tensor]
"""``family(n, call)``: int64 (sets, n), positions in the pool of each set's patches."""

_SOLVE = "null.sets.solve"
# Names the randomness of the clustering.


def separability_table(family: Family, n: int, call: Call) -> Tensor:
    """S of the family's sets of n patches: float64 (sets,)."""

    def compute() -> PooledSeparability:
        positions = _positions(family, n, call)
        each = n * (64 * n + 4 * call.pool.dim + 32)  # Grams or, on CUDA, rows of a large pool
        rows = torch.arange(len(positions), device=call.device)
        parts = [
            call.pooled_separability(positions[part], call.keys(_SOLVE, n, part))
            for part in rows.split(call.chunk(each))
        ]
        return PooledSeparability(*(torch.cat(field) for field in zip(*parts, strict=True)))

    return call.once((family, "s", n), compute).score


def clarity_table(family: Family, n: int, call: Call) -> Tensor:
    """Mean cosine of the family's sets of n patches: float64 (sets,)."""
    scored = call.known((family, "s", n))
    if isinstance(scored, PooledSeparability):
        return scored.clarity
    return call.once(
        (family, "clarity", n),
        lambda: torch.cat([clarity_of(grams) for _, _, grams in _sets(family, n, call)]),
    )


def distinctness_table(family: Family, n: int, k: int, call: Call) -> Tensor:
    """D of the family's sets of n patches clustered into k: float64 (sets,)."""
    texts, config = call.texts, call.config
    if texts is None:
        raise ValueError("a D null needs text embeddings")

    def compute() -> Tensor:
        values = []
        for keys, positions, grams in _sets(family, n, call):
            found = separability(  # for k alone, and not `cluster`: it has a kernel
                grams,
                keys,
                k_min=k,
                k_max=k,
                solver=config.solver,
                restarts=config.restarts,
                backend=call.backend,
                memory=call.memory,
            ).assignments
            rows = torch.arange(len(keys), device=call.device)
            for part in rows.split(call.near_chunk(n * call.pool.dim * 12)):
                units = call.pool.take(positions[part])
                found_part, kind = found[part], config.d_measure
                values.append(distinctness(units, found_part, k, texts, kind, call.centre))
        return torch.cat(values)

    return call.once((family, "d", n, k), compute)


class _Sets(NamedTuple):
    keys: Tensor  # int64 (m,), randomness of the clustering
    positions: Tensor  # int64 (m, n)
    grams: Tensor  # float32 (m, n, n)


def _sets(family: Family, n: int, call: Call) -> Iterator[_Sets]:
    """The family's sets, in parts that fit the memory; kept where all of them fit at once.

    Only those of the n asked for last: batches come n by n, and the tables made of them are small.
    """
    positions = _positions(family, n, call)
    parts = torch.arange(len(positions), device=call.device).split(call.chunk(64 * n * n))
    for part in parts:
        keys = call.keys(_SOLVE, n, part)
        if len(parts) == 1:
            grams = call.latest((family, "grams"), n, lambda: _grams(positions, call))
        else:
            grams = _grams(positions[part], call)
        yield _Sets(keys, positions[part], grams)


def _positions(family: Family, n: int, call: Call) -> Tensor:
    return call.latest((family, "positions"), n, lambda: family(n, call))


def _grams(positions: Tensor, call: Call) -> Tensor:
    step = call.near_chunk(positions.shape[1] * call.pool.dim * 12)
    return torch.cat([gram(call.pool.take(part)) for part in positions.split(step)])
