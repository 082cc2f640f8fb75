"""Q-null ``permutation``: shuffle which patch carries which label."""

from __future__ import annotations

from psi_engine.nulls.base import Batch, Call
from psi_engine.ops.contingency import permutation_nmi
from psi_engine.statistics import NullSummary, summarise


def permutation(batch: Batch, call: Call) -> NullSummary:
    """Compare Q with the NMI of permuted labels among each channel's known ones."""
    if batch.labels is None or batch.q is None:
        raise ValueError("the permutation null needs labels")
    keys = call.keys("null.q.permutation", batch.ids)
    draws = permutation_nmi(
        batch.assignments,
        batch.labels,
        keys,
        call.config.replicates,
        backend=call.backend,
        memory=call.memory,
    )
    return summarise(batch.q, draws)
