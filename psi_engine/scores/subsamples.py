"""PSI of random halves of a channel's patches, for its interval."""

from __future__ import annotations

import torch
from torch import Tensor

from psi_engine.nulls.base import Batch, Call
from psi_engine.ops.contingency import normalized_mutual_information
from psi_engine.ops.exact import cosines, fold_sum
from psi_engine.ops.random import permutations
from psi_engine.ops.silhouette import silhouette
from psi_engine.scores.distinctness import partition_distinctness
from psi_engine.statistics import EPSILON, NullSummary, around, calibrate


def half(n: int) -> int:
    """Patches in a subsample: ⌈n/2⌉."""
    return (n + 1) // 2


def subsampled_log_psi(batch: Batch, call: Call, nulls: dict[str, NullSummary]) -> Tensor:
    """Log PSI of subsamples drawn without replacement: float64 (channels, subsamples).

    Notes
    -----
    Assignments and null moments stay those of the whole channel; only the raw scores change.
    A raw score of half the patches is not one of all of them (NMI is larger for fewer patches,
    chance or not), and the null's moments belong to all. So the subsamples tell how a score
    varies, not where it is: their median is moved to the channel's own score before z and its
    logistic. Where the null has no spread, every subsample has the channel's own value.
    """
    n, count = batch.n, call.config.subsamples
    k = int(batch.n_clusters.max())
    texts = 0 if call.texts is None else len(call.texts.rows)
    out = torch.empty(len(batch.ids), count, dtype=torch.float64, device=call.device)
    each = count * (8 * n * n + 40 * n + 16 * k * (n + 3 * texts)) + 16 * n * texts
    for start in range(0, len(batch.ids), call.chunk(each)):
        rows = slice(start, start + call.chunk(each))
        draws = torch.arange(count, device=call.device)
        order = permutations(call.keys("subsample", batch.ids[rows, None], draws), n)
        kept = batch.assignments[rows, None].masked_fill(order >= half(n), -1)
        values = {"s": _silhouettes(batch.grams[rows], kept, call)}
        if batch.labels is not None:
            values["q"] = normalized_mutual_information(
                kept, batch.labels[rows, None], memory=call.memory
            )
        if call.texts is not None:
            values["d"] = partition_distinctness(
                cosines(batch.units[rows], call.texts.rows),
                batch.grams[rows],
                kept,
                k,
                call.config.d_measure,
                call.centre_similarities,
            )
        total = torch.zeros_like(values["s"])
        for name, value in values.items():
            null, own = nulls[name], getattr(batch, name)[rows, None]
            mean, std = null.mean[rows, None], null.std[rows, None]
            moved = around(own, value, n, half(n))
            moved = torch.where(std < EPSILON, own, moved)
            total += calibrate(moved, mean, std).log_hat
        out[rows] = total
    return out


def _silhouettes(grams: Tensor, kept: Tensor, call: Call) -> Tensor:
    n = grams.shape[-1]
    many = grams[:, None].expand(-1, kept.shape[1], n, n).flatten(0, 1)
    values = silhouette(many, kept.flatten(0, 1), backend=call.backend, memory=call.memory)
    known = ~torch.isnan(values)
    mean = fold_sum(torch.where(known, values, 0.0)) / known.sum(-1)
    return mean.clamp(min=0).unflatten(0, kept.shape[:2])
