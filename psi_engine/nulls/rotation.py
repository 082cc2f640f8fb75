"""S-null ``rotation``: an independent Haar rotation per patch, that is, uniform directions.

It depends only on (patches, dim), so it is drawn once for all channels. It says "not white
noise", which every real channel passes; see the method page for what it cannot say.
"""

from __future__ import annotations

import torch
from torch import Tensor

from psi_engine.nulls.base import Batch, Call
from psi_engine.nulls.draws import wishart_rows
from psi_engine.ops.exact import gram, unit_rows
from psi_engine.statistics import NullSummary, summarise


def rotation(batch: Batch, call: Call) -> NullSummary:
    """Compare S with S of as many independent uniform directions."""
    dim = batch.units.shape[-1]
    draws = call.once(("rotation", batch.n, dim), lambda: _draws(batch.n, dim, call))
    return summarise(batch.s, draws)


def _draws(n: int, dim: int, call: Call) -> Tensor:
    scores = []
    for part in call.replicates().split(call.chunk(n * n * 64)):
        keys = call.keys("null.s.rotation", n, dim, part)
        grams = gram(unit_rows(wishart_rows(keys, n, dim)).rows)
        scores.append(call.separability(grams, keys).score)
    return torch.cat(scores)
