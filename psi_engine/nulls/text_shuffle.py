"""D-null ``text-shuffle``: texts whose coordinates were shuffled between prompts.

Shuffling whole prompts changes nothing that D sees. Here each coordinate is permuted across the
texts independently and the rows are normalised again: every coordinate keeps its distribution,
no text keeps its meaning.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from psi_engine.nulls.base import Batch, Call
from psi_engine.ops.exact import cosines, unit_rows
from psi_engine.ops.naming import measure
from psi_engine.ops.random import permutations
from psi_engine.scores.distinctness import named_rows
from psi_engine.statistics import NullSummary, summarise


def text_shuffle(batch: Batch, call: Call) -> NullSummary:
    """Compare D with D against shuffled texts, at the level (prompt or concept) of the call."""
    if batch.d is None or call.texts is None:
        raise ValueError("a D null needs D")
    k = int(batch.n_clusters.max())
    kind = call.config.d_measure
    named = named_rows(batch.units, batch.assignments, k, kind, call.centre)
    rows = named.rows
    texts = call.texts.rows
    draws = torch.empty(len(rows), call.config.replicates, dtype=torch.float64, device=rows.device)
    done = 0
    for shuffled in _shuffles(texts, call):
        size = len(shuffled)
        wide = shuffled.flatten(0, 1).to(torch.float64)  # once, not for every few channels
        step = call.near_chunk(k * size * (len(texts) * 28 + texts.shape[1] * 16))
        for start in range(0, len(rows), step):
            part = slice(start, start + step)
            found = cosines(rows[part].flatten(0, 1), wide)
            # (channels · replicates, k, texts)
            found = found.unflatten(0, (-1, k)).unflatten(2, (size, -1)).movedim(2, 1).flatten(0, 1)
            here = named.weights[part].repeat_interleave(size, 0)
            values = named.scale * measure(found, here, kind)
            draws[part, done : done + size] = values.unflatten(0, (-1, size))
        done += size
    return summarise(batch.d, draws)


def _shuffles(texts: Tensor, call: Call) -> Iterable[Tensor]:
    """Shuffled texts, float32 (replicates, texts, dim), in turn; kept where all of them fit."""
    if 4 * call.config.replicates * texts.numel() > call.memory // 4:
        return _shuffled(texts, call)
    return call.once("text-shuffle", lambda: list(_shuffled(texts, call)))


def _shuffled(texts: Tensor, call: Call) -> Iterator[Tensor]:
    coordinates = torch.arange(texts.shape[1], device=texts.device)
    for several in call.replicates().split(call.near_chunk(texts.numel() * 64)):
        keys = call.keys("null.d.shuffle", several[:, None], coordinates)
        order = permutations(keys, len(texts)).mT  # (replicates, texts, dim)
        yield unit_rows(texts.expand(len(several), -1, -1).gather(1, order)).rows
