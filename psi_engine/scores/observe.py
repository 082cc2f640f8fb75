"""The raw scores S, Q and D of channels with the same number of patches."""

from __future__ import annotations

import torch
from torch import Tensor

from psi_engine.nulls.base import Batch, Call
from psi_engine.ops.contingency import normalized_mutual_information
from psi_engine.ops.exact import clarity_of, gram
from psi_engine.scores.distinctness import distinctness


def observe(ids: Tensor, units: Tensor, labels: Tensor | None, call: Call) -> Batch:
    """Cluster each channel's patches and take S, Q and D.

    Parameters
    ----------
    ids : Tensor, int64 (channels,)
    units : Tensor, float32 (channels, n, dim)
        Grid unit rows.
    labels : Tensor, int64 (channels, n), optional
        None leaves Q out; no texts in ``call`` leave D out.
    """
    grams = gram(units)
    found = call.separability(grams, call.keys("cluster", ids))
    batch = Batch(
        ids=ids,
        units=units,
        grams=grams,
        labels=labels,
        n_clusters=found.n_clusters,
        assignments=found.assignments,
        clarity=clarity_of(grams),
        s=found.score,
        q=None,
        d=None,
    )
    if labels is not None:
        batch.q = normalized_mutual_information(found.assignments, labels, memory=call.memory)
    if call.texts is not None:
        batch.d = _distinctness(batch, call)
    return batch


def _distinctness(batch: Batch, call: Call) -> Tensor:
    texts = call.texts
    if texts is None:
        raise ValueError("D needs texts")
    k = int(batch.n_clusters.max())
    each = k * (28 * len(texts.rows) + 40 * texts.rows.shape[1])
    parts = torch.arange(len(batch.ids), device=call.device).split(call.chunk(each))
    return torch.cat(
        [
            distinctness(
                batch.units[rows],
                batch.assignments[rows],
                k,
                texts,
                call.config.d_measure,
                call.centre,
            )
            for rows in parts
        ]
    )
