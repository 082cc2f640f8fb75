"""The CPU backend: the ops of this package compiled by numba, one problem after the other.

Same algorithms, draws and fixed-point sums as the torch paths, hence the same bits. The compiled
loops release the interpreter lock and run in plain threads, so that neither OpenMP nor forked
workers meet numba's own threading layers.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numba
import numba.core.config
import numpy as np
import torch
from torch import Tensor

from psi_engine.ops.clustering import LLOYD_STEPS, SEEDING, TOLERANCE
from psi_engine.ops.contingency import SHUFFLE
from psi_engine.ops.fixed_point import BOUND, FINE, bad_gram, fraction_bits
from psi_engine.ops.random import _GOLDEN as GOLDEN
from psi_engine.ops.random import _MIX_1 as MIX_1
from psi_engine.ops.random import _MIX_2 as MIX_2
from psi_engine.ops.silhouette import RESOLUTION

_TASKS_PER_THREAD = 8
_U64 = np.uint64
_GOLDEN, _MIX_1, _MIX_2 = (_U64(x & (2**64 - 1)) for x in (GOLDEN, MIX_1, MIX_2))
_SEEDING, _SHUFFLE = (_U64(x & (2**64 - 1)) for x in (SEEDING, SHUFFLE))


def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile on first call, without the interpreter lock; keep the code on disk if possible."""
    try:
        return numba.njit(nogil=True, cache=True)(function)
    except RuntimeError:  # no folder to keep it in
        return numba.njit(nogil=True)(function)


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
    _in_threads(_cluster_range, n, source, valid, keys.contiguous().numpy(), *options, *out)
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
    _in_threads(_separability_range, n, source, valid, keys.contiguous().numpy(), *options, *out)
    return score, n_clusters, labels


def silhouette(grams: Tensor, labels: Tensor, k: int) -> Tensor:
    """See :func:`psi_engine.ops.silhouette.silhouette`; labels below k, −1 where masked."""
    values = torch.full(labels.shape, torch.nan, dtype=torch.float64)
    source, valid, scale = _problems(grams, labels >= 0)
    _in_threads(
        _silhouette_range, len(grams), source, valid, labels.numpy(), k, scale, values.numpy()
    )
    return values


def permutation_nmi(
    a: Tensor, b: Tensor, count: Tensor, keys: Tensor, replicates: int, table: np.ndarray
) -> Tensor:
    """See :func:`psi_engine.ops.contingency.permutation_nmi`; dense labels, known first."""
    values = torch.zeros(len(a), replicates, dtype=torch.float64)
    arrays = (x.contiguous().numpy() for x in (a, b, count, keys))
    _in_threads(_permutation_range, len(a), *arrays, table, values.numpy())
    return values


def _problems(grams: Tensor, mask: Tensor | None) -> tuple[np.ndarray, np.ndarray, float]:
    source = grams.detach()
    if source.dtype not in (torch.float32, torch.float64):
        source = source.float()
    valid = torch.ones(grams.shape[:2], dtype=torch.bool) if mask is None else mask
    scale = 2.0 ** fraction_bits(grams.shape[1])
    return source.contiguous().numpy(), valid.contiguous().numpy(), scale


def _in_threads(work: Callable[..., bool], items: int, *arguments: Any) -> None:
    """Run ``work(start, stop, *arguments)`` over ranges of the items, in torch's thread count."""
    threads = max(1, min(torch.get_num_threads(), numba.core.config.NUMBA_NUM_THREADS, items))
    if threads == 1:
        good = work(0, items, *arguments)
    else:
        size = -(-items // (threads * _TASKS_PER_THREAD))
        starts = range(0, items, size)
        with ThreadPoolExecutor(threads, thread_name_prefix="psi-engine") as pool:
            tasks = [pool.submit(work, at, min(at + size, items), *arguments) for at in starts]
            good = min(task.result() for task in tasks)  # no short cut: all must end
    if not good:
        raise bad_gram()


@_compiled
def _mix(x):  # type: ignore[no-untyped-def]
    x = (x ^ (x >> _U64(30))) * _MIX_1
    x = (x ^ (x >> _U64(27))) * _MIX_2
    return x ^ (x >> _U64(31))


@_compiled
def _extend(state, key):  # type: ignore[no-untyped-def]
    return _mix((state ^ _U64(key)) + _GOLDEN)


@_compiled
def _unit(state):  # type: ignore[no-untyped-def]
    return np.float64(state >> _U64(11)) * 2.0**-53


@_compiled
def _load(gram, valid, scale, grid, where):  # type: ignore[no-untyped-def]
    """Put the valid patches of one problem on the grid; how many, or −1 for a bad entry."""
    m = 0
    for i in range(valid.shape[0]):
        if valid[i]:
            where[m] = i
            m += 1
    for i in range(m):
        for j in range(i, m):
            both = np.float64(gram[where[i], where[j]]) + np.float64(gram[where[j], where[i]])
            value = both * 0.5
            if not abs(value) <= BOUND:
                return -1
            value = np.rint(value * scale) / scale
            grid[i, j] = value
            grid[j, i] = value
    return m


@_compiled
def _distance(grid, i, j):  # type: ignore[no-untyped-def]
    return max(grid[j, j] + grid[i, i] - 2.0 * grid[i, j], 0.0)


@_compiled
def _seed(grid, m, state, k, scale, centres, closest, tried, best, near):  # type: ignore[no-untyped-def]
    """Draw k seeds; ``near[j]`` labels each patch with the nearest of the seeds 0..j."""
    first = min(np.int64(_unit(_extend(_extend(state, 0), 0)) * m), m - 1)
    centres[0] = first
    for i in range(m):
        closest[i] = _distance(grid, first, i)
        near[0, i] = 0
    for j in range(1, k):
        total = 0.0
        for i in range(m):
            total += closest[i]
        pick = -1
        if total > 0:
            least = np.inf
            drawn = _extend(state, j)
            for trial in range(2 + np.int64(np.log(j + 1.0))):
                at = min(_unit(_extend(drawn, trial)) * total, total - 1.0 / scale)
                up_to = 0.0
                candidate = -1
                while up_to <= at:
                    candidate += 1
                    up_to += closest[candidate]
                after = 0.0
                for i in range(m):
                    tried[i] = min(closest[i], _distance(grid, candidate, i))
                    after += tried[i]
                if after < least:
                    least, pick = after, candidate
                    best[:m] = tried[:m]
        else:
            for i in range(m):
                if pick < 0:
                    free = True
                    for c in range(j):
                        free = free and centres[c] != i
                    if free:
                        pick = i
            best[:m] = closest[:m]
        for i in range(m):
            near[j, i] = near[j - 1, i]
            if _distance(grid, pick, i) < closest[i]:
                near[j, i] = j
            closest[i] = best[i]
        centres[j] = pick


@_compiled
def _sum_up(grid, m, k, labels, sums, quadratic, sizes):  # type: ignore[no-untyped-def]
    for j in range(k):
        quadratic[j] = 0.0
        sizes[j] = 0
        sums[j, :m] = 0.0
    for i in range(m):
        j = labels[i]
        sizes[j] += 1
        for l in range(m):
            sums[j, l] += grid[i, l]
    for i in range(m):
        quadratic[labels[i]] += sums[labels[i], i]


@_compiled
def _hartigan(grid, m, k, labels, sums, quadratic, sizes, roots):  # type: ignore[no-untyped-def]
    _sum_up(grid, m, k, labels, sums, quadratic, sizes)
    for j in range(k):
        roots[j] = np.sqrt(max(quadratic[j], 0.0))
    i = 0
    still = 0
    while still < m:
        old = labels[i]
        still += 1
        if sizes[old] > 1:
            norm = grid[i, i]
            without = quadratic[old] - 2.0 * sums[old, i] + norm
            loss = roots[old] - np.sqrt(max(without, 0.0))
            new = -1
            gain = -np.inf
            for j in range(k):
                if j != old:
                    extra = np.sqrt(max(quadratic[j] + 2.0 * sums[j, i] + norm, 0.0)) - roots[j]
                    if extra > gain:
                        gain, new = extra, j
            if gain - loss > TOLERANCE:
                quadratic[new] += 2.0 * sums[new, i] + norm
                quadratic[old] = without
                for l in range(m):
                    step = grid[i, l]
                    sums[old, l] -= step
                    sums[new, l] += step
                roots[old] = np.sqrt(max(without, 0.0))
                roots[new] = np.sqrt(max(quadratic[new], 0.0))
                sizes[old] -= 1
                sizes[new] += 1
                labels[i] = new
                still = 0
        i = i + 1 if i + 1 < m else 0


@_compiled
def _lloyd(grid, m, k, labels, sums, quadratic, sizes, roots, fresh):  # type: ignore[no-untyped-def]
    for _ in range(LLOYD_STEPS):
        _sum_up(grid, m, k, labels, sums, quadratic, sizes)
        for j in range(k):
            roots[j] = max(np.sqrt(max(quadratic[j], 0.0)), TOLERANCE)
            sizes[j] = 0
        for i in range(m):
            new = 0
            for j in range(1, k):
                if sums[j, i] / roots[j] > sums[new, i] / roots[new]:
                    new = j
            old = labels[i]
            if not sums[new, i] / roots[new] - sums[old, i] / roots[old] > TOLERANCE:
                new = old
            fresh[i] = new
            sizes[new] += 1
        for j in range(k):
            if sizes[j] == 0:
                far = -1
                least = np.inf
                for i in range(m):
                    own = sums[fresh[i], i] / roots[fresh[i]]
                    if sizes[fresh[i]] > 1 and own < least:
                        least, far = own, i
                sizes[fresh[far]] -= 1
                sizes[j] = 1
                fresh[far] = j
        same = True
        for i in range(m):
            same = same and fresh[i] == labels[i]
            labels[i] = fresh[i]
        if same:
            break
    _sum_up(grid, m, k, labels, sums, quadratic, sizes)


@_compiled
def _points(grid, m, k, labels, sums, sizes, values):  # type: ignore[no-untyped-def]
    """Silhouette of each patch from the cluster sums."""
    for i in range(m):
        own = labels[i]
        value = 0.0
        if sizes[own] > 1:
            within = 1.0 - (sums[own, i] - grid[i, i]) / (sizes[own] - 1)
            between = np.inf
            for j in range(k):
                if j != own and sizes[j] > 0:
                    between = min(between, 1.0 - sums[j, i] / sizes[j])
            widest = max(within, between)
            if widest >= RESOLUTION and between < np.inf:
                value = min(max((between - within) / widest, -1.0), 1.0)
        values[i] = value


@_compiled
def _write(labels, m, k, where, number, out):  # type: ignore[no-untyped-def]
    """Store labels at the patches' places, numbered by first member."""
    number[:k] = -1
    used = 0
    for i in range(m):
        if number[labels[i]] < 0:
            number[labels[i]] = used
            used += 1
        out[where[i]] = number[labels[i]]


@_compiled
def _solve(  # type: ignore[no-untyped-def]
    grid, m, k_min, k_max, key, hartigan, restarts, scale, best, best_sums, best_sizes, objective
):
    """Best labels, sums, sizes and objective for each k in k_min..k_max, at index k − k_min."""
    centres = np.empty(k_max, np.int64)
    closest, tried, kept = np.empty(m), np.empty(m), np.empty(m)
    near = np.empty((k_max, m), np.int64)
    labels, fresh = np.empty(m, np.int64), np.empty(m, np.int64)
    sums, quadratic, roots = np.empty((k_max, m)), np.empty(k_max), np.empty(k_max)
    sizes = np.empty(k_max, np.int64)
    objective[:] = -np.inf
    state = _extend(_mix(_U64(key) + _GOLDEN), _SEEDING)
    for restart in range(restarts):
        drawn = _extend(state, restart)
        _seed(grid, m, drawn, k_max, scale, centres, closest, tried, kept, near)
        for k in range(k_min, k_max + 1):
            labels[:] = near[k - 1]
            for j in range(k):
                labels[centres[j]] = j
            if hartigan:
                _hartigan(grid, m, k, labels, sums, quadratic, sizes, roots)
            else:
                _lloyd(grid, m, k, labels, sums, quadratic, sizes, roots, fresh)
            value = 0.0
            for j in range(k):
                value += np.rint(np.sqrt(max(quadratic[j], 0.0)) * FINE) / FINE
            at = k - k_min
            if value > objective[at]:
                objective[at] = value
                best[at, :m] = labels
                best_sums[at, :k, :m] = sums[:k]
                best_sizes[at, :k] = sizes[:k]


@_compiled
def _cluster_range(  # type: ignore[no-untyped-def]
    start, stop, grams, valid, keys, k, hartigan, restarts, scale, out, out_objective
):
    patches = grams.shape[1]
    grid = np.empty((patches, patches))
    where, number = np.empty(patches, np.int64), np.empty(k, np.int64)
    best, best_sums = np.empty((1, patches), np.int64), np.empty((1, k, patches))
    best_sizes, objective = np.empty((1, k), np.int64), np.empty(1)
    for p in range(start, stop):
        m = _load(grams[p], valid[p], scale, grid, where)
        if m < 0:
            return False
        _solve(
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
        _write(best[0], m, k, where, number, out[p])
        out_objective[p] = objective[0]
    return True


@_compiled
def _separability_range(  # type: ignore[no-untyped-def]
    start, stop, grams, valid, keys, k_min, k_max, hartigan, restarts, scale, score, n_clusters, out
):
    patches = grams.shape[1]
    most = max(min(k_max, patches - 1), k_min)
    tries = most - k_min + 1
    grid, values = np.empty((patches, patches)), np.empty(patches)
    where, number = np.empty(patches, np.int64), np.empty(most, np.int64)
    best, best_sums = np.empty((tries, patches), np.int64), np.empty((tries, most, patches))
    best_sizes, objective = np.empty((tries, most), np.int64), np.empty(tries)
    for p in range(start, stop):
        m = _load(grams[p], valid[p], scale, grid, where)
        if m < 0:
            return False
        top = min(k_max, m - 1)
        if top < k_min:
            continue
        _solve(
            grid, m, k_min, top, keys[p], hartigan, restarts, scale, best, best_sums, best_sizes,
            objective,
        )  # fmt: skip
        highest = -np.inf
        for k in range(k_min, top + 1):
            at = k - k_min
            _points(grid, m, k, best[at], best_sums[at], best_sizes[at], values)
            total = 0.0
            for i in range(m):
                total += np.rint(values[i] * FINE) / FINE
            if total / m > highest:
                highest = total / m
                n_clusters[p] = k
        score[p] = max(highest, 0.0)
        _write(best[n_clusters[p] - k_min], m, n_clusters[p], where, number, out[p])
    return True


@_compiled
def _silhouette_range(start, stop, grams, valid, labels, k, scale, out):  # type: ignore[no-untyped-def]
    patches = grams.shape[1]
    grid, values, sums = np.empty((patches, patches)), np.empty(patches), np.empty((k, patches))
    where, held = np.empty(patches, np.int64), np.empty(patches, np.int64)
    quadratic, sizes = np.empty(k), np.empty(k, np.int64)
    for p in range(start, stop):
        m = _load(grams[p], valid[p], scale, grid, where)
        if m < 0:
            return False
        for i in range(m):
            held[i] = labels[p, where[i]]
        _sum_up(grid, m, k, held, sums, quadratic, sizes)
        _points(grid, m, k, held, sums, sizes, values)
        for i in range(m):
            out[p, where[i]] = values[i]
    return True


@_compiled
def _permutation_range(start, stop, a, b, count, keys, table, out):  # type: ignore[no-untyped-def]
    patches = a.shape[1]
    shuffled = np.empty(patches, np.int64)
    for p in range(start, stop):
        m = count[p]
        rows, columns = a[p, :m].max() + 1 if m else 0, b[p, :m].max() + 1 if m else 0
        first, second = np.zeros(rows, np.int64), np.zeros(columns, np.int64)
        cells = np.zeros((rows, columns), np.int64)
        for i in range(m):
            first[a[p, i]] += 1
            second[b[p, i]] += 1
        t_a, t_b = table[first].sum(), table[second].sum()
        if t_a >= table[m] or t_b >= table[m]:
            continue  # no entropy: stays 0
        state = _extend(_mix(_U64(keys[p]) + _GOLDEN), _SHUFFLE)
        for replicate in range(out.shape[1]):
            drawn = _extend(state, replicate)
            shuffled[:m] = b[p, :m]
            for i in range(m - 1, 0, -1):
                at = np.int64(_unit(_extend(drawn, i)) * (i + 1))
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
