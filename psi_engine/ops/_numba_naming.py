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
LANES = 32
"""Maxima kept side by side, a power of two."""


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
    terms, room = np.empty(k), np.empty(LANES)
    present, totals = np.zeros(stop - start, np.int64), np.empty(stop - start)
    for n in range(start, stop):
        for j in range(k):
            present[n - start] += weights[n, j] > 0
        totals[n - start] = folded(weights[n], terms, k)
    for s in range(bank.shape[0]):  # outside, so that a set of texts stays in the cache
        for n in range(start, stop):
            values[n, s] = 0.0
            if totals[n - start] == 0 or (kind != GAP and present[n - start] < 2):
                continue
            products(factors[n], bank[s], weights[n], found)
            if kind == GAP:
                gaps(found, weights[n], terms, room)
            else:
                margins(found, weights[n], kind == CONTRAST, terms, room)
            for j in range(k):
                terms[j] *= weights[n, j]
            values[n, s] = folded(terms, terms, k) / totals[n - start]
    return True


@compiled
def products(factor, texts, weights, found):
    """Similarities of the clusters that exist to all texts of one set."""
    rank = factor.shape[1]
    for j in range(factor.shape[0]):
        if weights[j] > 0:
            last = 0  # a triangular factor: nothing beyond
            for q in range(rank):
                last = q if factor[j, q] != 0 else last
            scale_to(found[j], factor[j, 0], texts[0])
            for q in range(1, last, 2):
                add_two(found[j], factor[j, q], texts[q], factor[j, q + 1], texts[q + 1])
            if last % 2 == 1:
                add_one(found[j], factor[j, last], texts[last])


@compiled
def scale_to(out, a, x):
    """Set a row; this and the next two stand apart, so that they become loops over registers."""
    for c in range(out.shape[0]):
        out[c] = a * x[c]


@compiled
def add_one(out, a, x):
    """Add a multiple of one row."""
    for c in range(out.shape[0]):
        out[c] += a * x[c]


@compiled
def add_two(out, a, x, b, y):
    """Add multiples of two rows; exact on the grid, in any order."""
    for c in range(out.shape[0]):
        out[c] += a * x[c] + b * y[c]


@compiled
def highest(row, room):
    """Greatest entry of a row; ``room`` (LANES,) is overwritten."""
    # lanes of their own: no compiler may reorder a maximum of floats by itself
    for l in range(LANES):
        room[l] = -np.inf
    whole = row.shape[0] // LANES * LANES
    for start in range(0, whole, LANES):
        for l in range(LANES):
            value = row[start + l]
            room[l] = value if value > room[l] else room[l]
    for l in range(row.shape[0] - whole):
        value = row[whole + l]
        room[l] = value if value > room[l] else room[l]
    half = LANES // 2
    while half:
        for l in range(half):
            room[l] = room[l] if room[l] > room[l + half] else room[l + half]
        half //= 2
    return room[0]


@compiled
def first_best(row, room):
    """Position of the greatest entry, the first of equal ones."""
    best = highest(row, room)
    at = 0
    while row[at] != best:
        at += 1
    return at


@compiled
def gaps(found, weights, terms, room):
    """Best minus second best similarity of each cluster; ``found`` loses the best."""
    for j in range(found.shape[0]):
        terms[j] = 0.0
        if weights[j] > 0:
            at = first_best(found[j], room)
            best = found[j, at]
            found[j, at] = -np.inf
            terms[j] = best - highest(found[j], room)


@compiled
def margins(found, weights, others_to_mine, terms, room):
    """Best similarity of each cluster minus its greatest rival."""
    k = found.shape[0]
    names = np.empty(k, np.int64)
    for j in range(k):
        names[j] = first_best(found[j], room) if weights[j] > 0 else -1
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
