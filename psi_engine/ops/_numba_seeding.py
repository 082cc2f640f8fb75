"""Keyed draws and greedy k-means++ seeds as loops for numba, one problem at a time.

They mirror :mod:`psi_engine.ops.random` and the seeding of :mod:`psi_engine.ops.clustering`.
"""
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import numpy as np

from psi_engine.ops import clustering, random
from psi_engine.ops._jit import compiled

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
def approach(grid, at, norms, closest, after):
    """Squared distance of each patch to the nearest seed, once one more is there."""
    for i in range(norms.shape[0]):
        apart = norms[i] + norms[at] - 2.0 * grid[at, i]
        apart = apart if apart > 0.0 else 0.0
        after[i] = apart if apart < closest[i] else closest[i]


@compiled
def total(values):
    """Sum whole registers; exact, so the order is free."""
    a, b, c, d = 0.0, 0.0, 0.0, 0.0
    for i in range(0, values.shape[0], 4):
        a += values[i]
        b += values[i + 1]
        c += values[i + 2]
        d += values[i + 3]
    return (a + b) + (c + d)


@compiled
def seed(grid, m, norms, state, k, scale, centres, closest, tried, best, up_to, near):
    """Draw k seeds; ``near[j]`` labels each patch with the nearest of the seeds 0..j."""
    centres[0] = min(np.int64(unit(extend(extend(state, 0), 0)) * m), m - 1)
    for i in range(norms.shape[0]):
        closest[i] = np.inf if i < m else 0.0
    approach(grid, centres[0], norms, closest, closest)
    for i in range(m):
        near[0, i] = 0
    for j in range(1, k):
        sum_so_far = 0.0
        for i in range(m):
            sum_so_far += closest[i]
            up_to[i] = sum_so_far
        pick = -1
        if sum_so_far > 0:
            least = np.inf
            drawn = extend(state, j)
            for trial in range(2 + np.int64(np.log(j + 1.0))):
                at = min(unit(extend(drawn, trial)) * sum_so_far, sum_so_far - 1.0 / scale)
                candidate = 0
                while up_to[candidate] <= at:
                    candidate += 1
                approach(grid, candidate, norms, closest, tried)
                after = total(tried)
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
            near[j, i] = j if best[i] < closest[i] else near[j - 1, i]
            closest[i] = best[i]
        centres[j] = pick
