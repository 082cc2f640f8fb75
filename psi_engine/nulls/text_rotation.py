"""D-null ``text-rotation``: the same clusters named by the same texts, turned at random.

One random rotation Q turns all texts together. They keep their number, their likeness to each
other and their synonyms, and lose what they say about images: what D is left with is what
clusters so far apart would give any texts. D above that says that the clusters have different
names, not that there is anything to name: sets of random patches, half animals and half tools,
exceed it too, and only S (and Q) tell them from a polysemantic unit. What it excludes are units
of one concept, whose clusters share their name.

Only the Gram matrix of a channel's few cluster rows matters. With L a square root of it, the
rows' similarities to turned texts are distributed as L·F·Tᵀ, F the first rows of a Haar matrix:
the products F·Tᵀ are drawn once and serve all channels.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from psi_engine.nulls.base import Batch, Call
from psi_engine.nulls.draws import frames
from psi_engine.ops.exact import quantise
from psi_engine.ops.naming import factored_measure
from psi_engine.scores.distinctness import named_rows
from psi_engine.statistics import NullSummary, summarise

_FLAT = 2.0**-40
# Pivots below this are rounding: a cluster row that others span, or none at all.


def text_rotation(batch: Batch, call: Call) -> NullSummary:
    """Compare D with D against the texts turned at random about the origin.

    Notes
    -----
    Exact by exchangeability where the texts' orientation has nothing to do with the images. The
    turns are shared by the channels.
    """
    if batch.d is None:
        raise ValueError("a D null needs D")
    # as many as any channel of this size can have: what travels beside it must not matter
    k, dim = min(call.config.k_max, batch.n - 1), batch.units.shape[2]
    kind = call.config.d_measure
    named = named_rows(batch.units, batch.assignments, k, kind, call.centre)
    factors = gram_roots(named.rows) if k < dim else named.rows
    draws = torch.empty(
        len(factors), call.config.replicates, dtype=torch.float64, device=call.device
    )
    done = 0
    for bank in _banks(factors.shape[2], call):
        draws[:, done : done + len(bank)] = factored_measure(
            factors, bank, named.weights, kind, backend=call.backend, memory=call.memory
        )
        done += len(bank)
    return summarise(batch.d, named.scale * draws)


def gram_roots(rows: Tensor) -> Tensor:
    """Lower triangular L with LLᵀ the Gram matrix of each set of rows, on the grid.

    Parameters
    ----------
    rows : Tensor, float32 (n, k, dim)
        On the grid, of length at most one.

    Returns
    -------
    Tensor
        float32 (n, k, k).

    Notes
    -----
    Cholesky's decomposition column by column in elementwise operations: the same bits in every
    batch. A row that the ones before it span has no column of its own.
    """
    wide = rows.to(torch.float64)
    rest = wide @ wide.mT  # exact on the grid
    root = torch.zeros_like(rest)
    for column in range(rest.shape[-1]):
        pivot = rest[:, column, column]
        used = pivot > _FLAT
        length = torch.where(used, pivot, 1.0).sqrt()
        below = torch.where(used[:, None], rest[:, :, column] / length[:, None], 0.0)
        below[:, :column] = 0.0
        root[:, :, column] = below
        rest = rest - below[:, :, None] * below[:, None, :]
    return quantise(root)


def _banks(size: int, call: Call) -> Iterable[Tensor]:
    """Turned texts, float32 (replicates, size, texts), in turn; kept where all of them fit."""
    if call.texts is None:
        raise ValueError("a D null needs texts")
    if 4 * call.config.replicates * size * len(call.texts.rows) > call.memory // 4:
        return _turned(size, call.texts.rows, call)
    texts = call.texts.rows
    return call.latest("text-rotation", size, lambda: list(_turned(size, texts, call)))


def _turned(size: int, texts: Tensor, call: Call) -> Iterator[Tensor]:
    wide = texts.to(torch.float64).T
    each = 8 * size * (3 * texts.shape[1] + 4 * len(texts))
    for several in call.replicates().split(min(call.chunk(4 * each), 128)):
        axes = quantise(frames(call.keys("null.d.rotation", size, several), size, texts.shape[1]))
        # products of grid numbers: exact in float64, in any order
        yield quantise(axes.to(torch.float64) @ wide)
