"""The solver of :mod:`psi_engine.ops.clustering` as loops for numba, one problem at a time."""
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import numpy as np

from psi_engine.ops import clustering, random
from psi_engine.ops._jit import compiled
from psi_engine.ops.clustering import LLOYD_STEPS, TOLERANCE
from psi_engine.ops.fixed_point import BOUND, FINE
from psi_engine.ops.silhouette import RESOLUTION

U64 = np.uint64


def unsigned(value: int) -> np.uint64:
    """The same 64 bits without a sign."""
    return U64(value & (2**64 - 1))


GOLDEN, MIX_1, MIX_2 = (unsigned(x) for x in (random._GOLDEN, random._MIX_1, random._MIX_2))
SEEDING = unsigned(clustering.SEEDING)


@compiled
def mix(x):
    """Finalise a state; this and the next two mirror psi_engine.ops.random."""
    x = (x ^ (x >> U64(30))) * MIX_1
    x = (x ^ (x >> U64(27))) * MIX_2
    return x ^ (x >> U64(31))


@compiled
def extend(state, key):
    """Fold one more key into a state."""
    return mix((state ^ U64(key)) + GOLDEN)


@compiled
def unit(state):
    """Turn a state into a number in [0, 1)."""
    return np.float64(state >> U64(11)) * 2.0**-53


@compiled
def load(gram, valid, scale, grid, where):
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


@compiled
def distance(grid, i, j):
    """Squared distance of two patches."""
    return max(grid[j, j] + grid[i, i] - 2.0 * grid[i, j], 0.0)


@compiled
def seed(grid, m, state, k, scale, centres, closest, tried, best, near):
    """Draw k seeds; ``near[j]`` labels each patch with the nearest of the seeds 0..j."""
    first = min(np.int64(unit(extend(extend(state, 0), 0)) * m), m - 1)
    centres[0] = first
    for i in range(m):
        closest[i] = distance(grid, first, i)
        near[0, i] = 0
    for j in range(1, k):
        total = 0.0
        for i in range(m):
            total += closest[i]
        pick = -1
        if total > 0:
            least = np.inf
            drawn = extend(state, j)
            for trial in range(2 + np.int64(np.log(j + 1.0))):
                at = min(unit(extend(drawn, trial)) * total, total - 1.0 / scale)
                up_to = 0.0
                candidate = -1
                while up_to <= at:
                    candidate += 1
                    up_to += closest[candidate]
                after = 0.0
                for i in range(m):
                    tried[i] = min(closest[i], distance(grid, candidate, i))
                    after += tried[i]
                if after < least:
                    least, pick = after, candidate
                    for i in range(m):
                        best[i] = tried[i]
        else:
            for i in range(m):
                if pick < 0:
                    free = True
                    for c in range(j):
                        free = free and centres[c] != i
                    if free:
                        pick = i
            for i in range(m):
                best[i] = closest[i]
        for i in range(m):
            near[j, i] = near[j - 1, i]
            if distance(grid, pick, i) < closest[i]:
                near[j, i] = j
            closest[i] = best[i]
        centres[j] = pick


@compiled
def sum_up(grid, m, k, labels, sums, quadratic, sizes):
    """Compute G h_j, h_j'G h_j and the size of each cluster."""
    for j in range(k):
        quadratic[j] = 0.0
        sizes[j] = 0
        for l in range(m):
            sums[j, l] = 0.0
    for i in range(m):
        j = labels[i]
        sizes[j] += 1
        for l in range(m):
            sums[j, l] += grid[i, l]
    for i in range(m):
        quadratic[labels[i]] += sums[labels[i], i]


@compiled
def sweep(grid, m, k, labels, sums, quadratic, sizes, roots):
    """Move single patches until m of them in a row stay."""
    sum_up(grid, m, k, labels, sums, quadratic, sizes)
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


@compiled
def reassign(grid, m, k, labels, sums, quadratic, sizes, roots, fresh):
    """Reassign all patches until nothing changes; refill emptied clusters."""
    for _ in range(LLOYD_STEPS):
        sum_up(grid, m, k, labels, sums, quadratic, sizes)
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
    sum_up(grid, m, k, labels, sums, quadratic, sizes)


@compiled
def points(grid, m, k, labels, sums, sizes, values):
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


@compiled
def write(labels, m, k, where, number, out):
    """Store labels at the patches' places, numbered by first member."""
    for j in range(k):
        number[j] = -1
    used = 0
    for i in range(m):
        if number[labels[i]] < 0:
            number[labels[i]] = used
            used += 1
        out[where[i]] = number[labels[i]]


@compiled
def solve(
    grid, m, k_min, k_max, key, hartigan, restarts, scale, best, best_sums, best_sizes, objective
):
    """Best labels, sums, sizes and objective for each k in k_min..k_max, at index k − k_min."""
    centres = np.empty(k_max, np.int64)
    closest, tried, kept = np.empty(m), np.empty(m), np.empty(m)
    near = np.empty((k_max, m), np.int64)
    labels, fresh = np.empty(m, np.int64), np.empty(m, np.int64)
    sums, quadratic, roots = np.empty((k_max, m)), np.empty(k_max), np.empty(k_max)
    sizes = np.empty(k_max, np.int64)
    for at in range(k_max - k_min + 1):
        objective[at] = -np.inf
    state = extend(mix(U64(key) + GOLDEN), SEEDING)
    for restart in range(restarts):
        drawn = extend(state, restart)
        seed(grid, m, drawn, k_max, scale, centres, closest, tried, kept, near)
        for k in range(k_min, k_max + 1):
            for i in range(m):
                labels[i] = near[k - 1, i]
            for j in range(k):
                labels[centres[j]] = j
            if hartigan:
                sweep(grid, m, k, labels, sums, quadratic, sizes, roots)
            else:
                reassign(grid, m, k, labels, sums, quadratic, sizes, roots, fresh)
            value = 0.0
            for j in range(k):
                value += np.rint(np.sqrt(max(quadratic[j], 0.0)) * FINE) / FINE
            at = k - k_min
            if value > objective[at]:
                objective[at] = value
                for i in range(m):
                    best[at, i] = labels[i]
                for j in range(k):
                    best_sizes[at, j] = sizes[j]
                    for i in range(m):
                        best_sums[at, j, i] = sums[j, i]
