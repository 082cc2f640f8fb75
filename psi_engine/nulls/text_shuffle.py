"""D-null ``text-shuffle``: texts whose coordinates were shuffled between prompts.

Shuffling whole prompts changes nothing that D sees. Here each coordinate is permuted across the
texts independently and the rows are normalised again: every coordinate keeps its distribution,
no text keeps its meaning.
"""

from __future__ import annotations

import torch

from psi_engine.nulls.base import Batch, Call
from psi_engine.ops.exact import cosines, unit_rows
from psi_engine.ops.random import permutations
from psi_engine.scores.distinctness import measure, prototypes
from psi_engine.statistics import NullSummary, summarise


def text_shuffle(batch: Batch, call: Call) -> NullSummary:
    """Compare D with D against shuffled texts, at the level (prompt or concept) of the call."""
    if batch.d is None or call.texts is None:
        raise ValueError("a D null needs D")
    k = int(batch.n_clusters.max())
    rows, present = prototypes(batch.units, batch.assignments, k)
    texts = call.texts.rows
    draws = torch.empty(len(rows), call.config.replicates, dtype=torch.float64, device=rows.device)
    coordinates = torch.arange(texts.shape[1], device=rows.device)
    step = call.chunk(k * (len(texts) * 28 + texts.shape[1] * 16))
    for replicate in range(call.config.replicates):
        keys = call.keys("null.d.shuffle", replicate, coordinates)
        order = permutations(keys, len(texts)).T  # (texts, dim)
        shuffled = unit_rows(texts.gather(0, order)).rows
        for start in range(0, len(rows), step):
            part = slice(start, start + step)
            found = cosines(rows[part].flatten(0, 1), shuffled).unflatten(0, (-1, k))
            draws[part, replicate] = measure(found, present[part], call.config.d_measure)
    return summarise(batch.d, draws)
