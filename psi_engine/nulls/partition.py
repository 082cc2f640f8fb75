"""D-null ``partition``: random partitions of the channel's own patches, same cluster sizes.

It assumes that assignments do not depend on the embeddings; clustering makes them depend. On
one-mode channels it therefore rejects far too often, and it always says so.
"""

from __future__ import annotations

import torch

from psi_engine.nulls.base import Batch, Call
from psi_engine.ops.exact import cosines
from psi_engine.ops.random import permutations
from psi_engine.scores.distinctness import partition_distinctness
from psi_engine.statistics import NullSummary, summarise


def partition(batch: Batch, call: Call) -> NullSummary:
    """Compare D with D of random partitions of the same patches."""
    if batch.d is None or call.texts is None:
        raise ValueError("a D null needs D")
    call.note(
        "d_null 'partition' treats the clusters as if they had been drawn without looking at the "
        "embeddings: at 5 % it rejects about one in five (gap) or four in five (contrast, margin) "
        "of one-mode channels; use 'text-rotation'"
    )
    k, n, texts = int(batch.n_clusters.max()), batch.n, call.texts.rows
    draws = torch.empty(
        len(batch.ids), call.config.replicates, dtype=torch.float64, device=call.device
    )
    each = 8 * (n * (k + 4) + 5 * k * len(texts))
    many = max(1, min(call.config.replicates, call.near_chunk(each)))
    step = call.near_chunk(many * each + 20 * n * (len(texts) + texts.shape[1]))
    wide = texts.to(torch.float64)  # once, not for every few channels
    observed = torch.empty_like(batch.d)  # rounded as the draws are, so that equal ones tie
    for start in range(0, len(batch.ids), step):
        rows = slice(start, start + step)
        found = cosines(batch.units[rows], wide)
        observed[rows] = partition_distinctness(
            found,
            batch.grams[rows],
            batch.assignments[rows, None],
            k,
            call.config.d_measure,
            call.centre_similarities,
        )[:, 0]
        for part, out in zip(
            call.replicates().split(many), draws[rows].split(many, dim=1), strict=True
        ):
            keys = call.keys("null.d.partition", batch.ids[rows, None], part)
            own = batch.assignments[rows, None].expand(-1, len(part), -1)
            shuffled = own.gather(2, permutations(keys, n))
            out[:] = partition_distinctness(
                found,
                batch.grams[rows],
                shuffled,
                k,
                call.config.d_measure,
                call.centre_similarities,
            )
    return summarise(observed, draws)
