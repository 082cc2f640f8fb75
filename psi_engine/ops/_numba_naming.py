"""The measures of :mod:`psi_engine.ops.naming` as loops for numba; the same sums, the same bits."""
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from psi_engine.config import DMeasure
from psi_engine.ops._jit import compiled, in_threads

GAP, CONTRAST, MARGIN = range(3)
KINDS: dict[DMeasure, int] = {"gap": GAP, "contrast": CONTRAST, "margin": MARGIN}


def factored_measure(factors: Tensor, bank: Tensor, weights: Tensor, kind: DMeasure) -> Tensor:
    """See :func:`psi_engine.ops.naming.factored_measure`; the arguments are checked."""
    values = torch.empty(len(factors), len(bank), dtype=torch.float64)
    arrays = (x.to(torch.float64).contiguous().numpy() for x in (factors, bank, weights))
    in_threads(_range, len(factors), *arrays, KINDS[kind], values.numpy())
    return values


@compiled
def _range(start, stop, factors, bank, weights, kind, values):
    k = factors.shape[1]
    texts = bank.shape[2]
    found = np.empty((k, texts))
    terms = np.empty(k)
    for n in range(start, stop):
        present = 0
        for j in range(k):
            present += weights[n, j] > 0
        total = folded(weights[n], terms, k)
        for s in range(bank.shape[0]):
            values[n, s] = 0.0
            if total == 0 or (kind != GAP and present < 2):
                continue
            products(factors[n], bank[s], weights[n], found)
            if kind == GAP:
                gaps(found, weights[n], terms)
            else:
                margins(found, weights[n], kind == CONTRAST, terms)
            for j in range(k):
                terms[j] *= weights[n, j]
            values[n, s] = folded(terms, terms, k) / total
    return True


@compiled
def products(factor, texts, weights, found):
    """Similarities of the clusters that exist to all texts of one set."""
    for j in range(factor.shape[0]):
        if weights[j] > 0:
            row = found[j]
            for c in range(row.shape[0]):
                row[c] = factor[j, 0] * texts[0, c]
            for q in range(1, factor.shape[1]):
                scale = factor[j, q]
                if scale != 0:
                    for c in range(row.shape[0]):
                        row[c] += scale * texts[q, c]


@compiled
def first_best(row):
    """Position of the greatest entry, the first of equal ones."""
    # blocks whose maximum the compiler finds with vector instructions; one of them is searched
    best = -np.inf
    block = 0
    for start in range(0, row.shape[0], 64):
        highest = -np.inf
        for c in range(start, min(start + 64, row.shape[0])):
            highest = row[c] if row[c] > highest else highest
        if highest > best:
            best, block = highest, start
    while row[block] != best:
        block += 1
    return block


@compiled
def gaps(found, weights, terms):
    """Best minus second best similarity of each cluster."""
    for j in range(found.shape[0]):
        terms[j] = 0.0
        if weights[j] > 0:
            at = first_best(found[j])
            second = -np.inf
            for c in range(found.shape[1]):
                if c != at and found[j, c] > second:
                    second = found[j, c]
            terms[j] = found[j, at] - second


@compiled
def margins(found, weights, others_to_mine, terms):
    """Best similarity of each cluster minus its greatest rival."""
    k = found.shape[0]
    names = np.empty(k, np.int64)
    for j in range(k):
        names[j] = first_best(found[j]) if weights[j] > 0 else -1
    for j in range(k):
        terms[j] = 0.0
        if weights[j] > 0:
            rival = -np.inf
            for l in range(k):
                if l != j and weights[l] > 0:
                    value = found[l, names[j]] if others_to_mine else found[j, names[l]]
                    rival = max(rival, value)
            terms[j] = found[j, names[j]] - rival


@compiled
def folded(values, room, size):
    """Sum in the order of :func:`psi_engine.ops.exact.fold_sum`; ``room`` is overwritten."""
    for j in range(size):
        room[j] = values[j]
    while size > 1:
        half = size // 2
        for j in range(half):
            room[j] += room[size - half + j]
        size -= half
    return room[0]
