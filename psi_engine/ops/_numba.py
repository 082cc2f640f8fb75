"""The CPU backend: the ops of this package compiled by numba.

Same algorithms, draws and fixed-point sums as the torch paths, hence the same bits.
"""
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from psi_engine.ops import contingency
from psi_engine.ops._jit import compiled, in_threads
from psi_engine.ops._numba_clustering import load, points, solve, sum_up, width, write
from psi_engine.ops._numba_seeding import GOLDEN, U64, extend, mix, unit, unsigned
from psi_engine.ops.fixed_point import FINE, fraction_bits

SHUFFLE_KEY = unsigned(contingency.SHUFFLE)


def cluster(
    grams: Tensor, keys: Tensor, k: int, mask: Tensor | None, solver: str, restarts: int
) -> tuple[Tensor, Tensor]:
    """See :func:`psi_engine.ops.clustering.cluster`; the arguments are checked."""
    n, patches = grams.shape[:2]
    labels = torch.full((n, patches), -1, dtype=torch.int64)
    objective = torch.empty(n, dtype=torch.float64)
    source, valid, scale = _problems(grams, mask)
    out = (labels.numpy(), objective.numpy())
    options = (k, solver == "hartigan", restarts, scale)
    in_threads(_cluster_range, n, source, valid, keys.contiguous().numpy(), *options, *out)
    return labels, objective


def separability(
    grams: Tensor,
    keys: Tensor,
    k_min: int,
    k_max: int,
    mask: Tensor | None,
    solver: str,
    restarts: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """See :func:`psi_engine.ops.separability.separability`; the arguments are checked."""
    n, patches = grams.shape[:2]
    score = torch.full((n,), torch.nan, dtype=torch.float64)
    n_clusters = torch.zeros(n, dtype=torch.int64)
    labels = torch.full((n, patches), -1, dtype=torch.int64)
    source, valid, scale = _problems(grams, mask)
    out = (score.numpy(), n_clusters.numpy(), labels.numpy())
    options = (k_min, k_max, solver == "hartigan", restarts, scale)
    in_threads(_separability_range, n, source, valid, keys.contiguous().numpy(), *options, *out)
    return score, n_clusters, labels


def silhouette(grams: Tensor, labels: Tensor, k: int) -> Tensor:
    """See :func:`psi_engine.ops.silhouette.silhouette`; labels below k, −1 where masked."""
    values = torch.full(labels.shape, torch.nan, dtype=torch.float64)
    source, valid, scale = _problems(grams, labels >= 0)
    in_threads(
        _silhouette_range, len(grams), source, valid, labels.numpy(), k, scale, values.numpy()
    )
    return values


def permutation_nmi(
    a: Tensor, b: Tensor, count: Tensor, keys: Tensor, replicates: int, table: np.ndarray
) -> Tensor:
    """See :func:`psi_engine.ops.contingency.permutation_nmi`; dense labels, known first."""
    values = torch.zeros(len(a), replicates, dtype=torch.float64)
    arrays = (x.contiguous().numpy() for x in (a, b, count, keys))
    in_threads(_permutation_range, len(a), *arrays, table, values.numpy())
    return values


def _problems(grams: Tensor, mask: Tensor | None) -> tuple[np.ndarray, np.ndarray, float]:
    source = grams.detach()
    if source.dtype not in (torch.float32, torch.float64):
        source = source.float()
    valid = torch.ones(grams.shape[:2], dtype=torch.bool) if mask is None else mask
    scale = 2.0 ** fraction_bits(grams.shape[1])
    return source.contiguous().numpy(), valid.contiguous().numpy(), scale


@compiled
def _cluster_range(
    start, stop, grams, valid, keys, k, hartigan, restarts, scale, out, out_objective
):
    patches = grams.shape[1]
    grid = np.empty((patches, width(patches)))
    where, number = np.empty(patches, np.int64), np.empty(k, np.int64)
    best, best_sums = np.empty((1, patches), np.int64), np.empty((1, k, patches))
    best_sizes, objective = np.empty((1, k), np.int64), np.empty(1)
    for p in range(start, stop):
        m = load(grams[p], valid[p], scale, grid, where)
        if m < 0:
            return False
        solve(
            grid,
            m,
            k,
            k,
            keys[p],
            hartigan,
            restarts,
            scale,
            best,
            best_sums,
            best_sizes,
            objective,
        )
        write(best[0], m, k, where, number, out[p])
        out_objective[p] = objective[0]
    return True


@compiled
def _separability_range(
    start, stop, grams, valid, keys, k_min, k_max, hartigan, restarts, scale, score, n_clusters, out
):
    patches = grams.shape[1]
    most = max(min(k_max, patches - 1), k_min)
    tries = most - k_min + 1
    grid, values = np.empty((patches, width(patches))), np.empty(patches)
    where, number = np.empty(patches, np.int64), np.empty(most, np.int64)
    best, best_sums = np.empty((tries, patches), np.int64), np.empty((tries, most, patches))
    best_sizes, objective = np.empty((tries, most), np.int64), np.empty(tries)
    for p in range(start, stop):
        m = load(grams[p], valid[p], scale, grid, where)
        if m < 0:
            return False
        top = min(k_max, m - 1)
        if top < k_min:
            continue
        solve(
            grid, m, k_min, top, keys[p], hartigan, restarts, scale, best, best_sums, best_sizes,
            objective,
        )  # fmt: skip
        highest = -np.inf
        for k in range(k_min, top + 1):
            at = k - k_min
            points(grid, m, k, best[at], best_sums[at], best_sizes[at], values)
            total = 0.0
            for i in range(m):
                total += np.rint(values[i] * FINE) / FINE
            if total / m > highest:
                highest = total / m
                n_clusters[p] = k
        score[p] = max(highest, 0.0)
        write(best[n_clusters[p] - k_min], m, n_clusters[p], where, number, out[p])
    return True


@compiled
def _silhouette_range(start, stop, grams, valid, labels, k, scale, out):
    patches = grams.shape[1]
    wide = width(patches)
    grid, values, sums = np.empty((patches, wide)), np.empty(patches), np.empty((k, wide))
    where, held = np.empty(patches, np.int64), np.empty(patches, np.int64)
    quadratic, sizes = np.empty(k), np.empty(k, np.int64)
    for p in range(start, stop):
        m = load(grams[p], valid[p], scale, grid, where)
        if m < 0:
            return False
        for i in range(m):
            held[i] = labels[p, where[i]]
        sum_up(grid, m, k, held, sums, quadratic, sizes)
        points(grid, m, k, held, sums, sizes, values)
        for i in range(m):
            out[p, where[i]] = values[i]
    return True


@compiled
def _permutation_range(start, stop, a, b, count, keys, table, out):
    patches = a.shape[1]
    shuffled = np.empty(patches, np.int64)
    for p in range(start, stop):
        m = count[p]
        rows, columns = 0, 0
        for i in range(m):
            rows, columns = max(rows, a[p, i] + 1), max(columns, b[p, i] + 1)
        cells = np.zeros((rows + 1, columns + 1), np.int64)  # margins in the last row and column
        for i in range(m):
            cells[a[p, i], columns] += 1
            cells[rows, b[p, i]] += 1
        t_a, t_b = 0, 0
        for j in range(rows):
            t_a += table[cells[j, columns]]
        for j in range(columns):
            t_b += table[cells[rows, j]]
        if t_a >= table[m] or t_b >= table[m]:
            continue  # no entropy: stays 0
        state = extend(mix(U64(keys[p]) + GOLDEN), SHUFFLE_KEY)
        for replicate in range(out.shape[1]):
            drawn = extend(state, replicate)
            for i in range(m):
                shuffled[i] = b[p, i]
            for i in range(m - 1, 0, -1):
                at = np.int64(unit(extend(drawn, i)) * (i + 1))
                shuffled[i], shuffled[at] = shuffled[at], shuffled[i]
            joint = 0
            for i in range(m):
                seen = cells[a[p, i], shuffled[i]]
                joint += table[seen + 1] - table[seen]
                cells[a[p, i], shuffled[i]] = seen + 1
            for i in range(m):
                cells[a[p, i], shuffled[i]] = 0
            mutual = max(joint - t_a - t_b + table[m], 0)
            out[p, replicate] = np.float64(2 * mutual) / np.float64(2 * table[m] - t_a - t_b)
    return True
