"""Nulls ``pool``: as many random pool patches as the channel has, "a unit that fires at random".

Patches are drawn without replacement and put through the same clustering, for D at the channel's
own number of clusters.
"""

from __future__ import annotations

import torch
from torch import Tensor

from psi_engine.nulls.base import Batch, Call
from psi_engine.nulls.draws import without_replacement
from psi_engine.nulls.patch_sets import clarity_table, distinctness_table, separability_table
from psi_engine.statistics import NullSummary, by_group, summarise


def pool_s(batch: Batch, call: Call) -> NullSummary:
    """Compare S with S of random pool sets."""
    return summarise(batch.s, separability_table(random_sets, batch.n, call))


def pool_d(batch: Batch, call: Call) -> NullSummary:
    """Compare D with D of random pool sets clustered at the channel's k̂."""
    if batch.d is None:
        raise ValueError("a D null needs D")
    observed = batch.d

    def compare(k: int, rows: Tensor) -> NullSummary:
        return summarise(observed[rows], distinctness_table(random_sets, batch.n, k, call))

    return by_group(batch.n_clusters, compare)


def clarity_p(batch: Batch, call: Call) -> Tensor:
    """P of each channel's mean cosine among random pool sets: float64 (channels,)."""
    return summarise(batch.clarity, clarity_table(random_sets, batch.n, call)).p


def random_sets(n: int, call: Call) -> Tensor:
    """Positions of n pool patches without replacement: int64 (replicates, n)."""
    keys = call.keys("null.pool", n, call.replicates())
    parts = keys.split(call.chunk(64 * min(len(call.pool), 8 * n)))
    return torch.cat([without_replacement(part, len(call.pool), n) for part in parts])
