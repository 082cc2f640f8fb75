"""The solver of :mod:`psi_engine.ops.clustering` as loops for numba, one problem at a time."""
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import numpy as np

from psi_engine.ops._jit import compiled
from psi_engine.ops._numba_seeding import GOLDEN, SEEDING, U64, extend, mix, seed
from psi_engine.ops.blocks import BLOCKS
from psi_engine.ops.clustering import LLOYD_STEPS, TOLERANCE
from psi_engine.ops.fixed_point import BOUND, FINE
from psi_engine.ops.silhouette import RESOLUTION


@compiled
def width(m):
    """Round up to whole SIMD registers: rows of the arrays below are this wide, 0 beyond m."""
    return (m + 3) // 4 * 4


@compiled
def load(gram, valid, scale, grid, where):
    """Put the valid patches of one problem on the grid; how many, or −1 for a bad entry."""
    m = 0
    for i in range(valid.shape[0]):
        if valid[i]:
            where[m] = i
            m += 1
    wide = width(m)
    for i in range(m):
        source = gram[where[i]]
        if m == valid.shape[0]:
            for j in range(m):
                grid[i, j] = source[j]
        else:
            for j in range(m):
                grid[i, j] = source[where[j]]
        for j in range(m, wide):
            grid[i, j] = 0.0
    for i in range(m):
        for j in range(i):
            value = (grid[i, j] + grid[j, i]) * 0.5
            grid[i, j] = value
            grid[j, i] = value
    bad = 0
    for i in range(m):
        bad += snap(grid[i, :wide], scale, 1.0 / scale)
    return m if bad == 0 else -1


@compiled
def snap(row, scale, step):
    """Round to the grid; count the entries that are no cosines."""
    bad = 0
    for i in range(row.shape[0]):
        bad += 0 if abs(row[i]) <= BOUND else 1
        row[i] = np.rint(row[i] * scale) * step
    return bad


@compiled
def sum_up(grid, m, k, labels, sums, quadratic, sizes):
    """Compute G h_j, h_j'G h_j and the size of each cluster."""
    wide = width(m)
    for j in range(k):
        quadratic[j] = 0.0
        sizes[j] = 0
        for l in range(wide):
            sums[j, l] = 0.0
    for i in range(m):
        sizes[labels[i]] += 1
        add(sums, labels[i], grid, i, wide)
    for i in range(m):
        quadratic[labels[i]] += sums[labels[i], i]


@compiled
def add(sums, j, rows, i, wide):
    """Add row i to sum j; apart, so that it becomes a loop over registers."""
    for l in range(wide):
        sums[j, l] += rows[i, l]


@compiled
def subtract(sums, j, rows, i, wide):
    """Subtract row i from sum j."""
    for l in range(wide):
        sums[j, l] -= rows[i, l]


@compiled
def weigh(j, single, sums, norms, labels, quadratic, root, gain, loss):
    """Gain of each patch from joining cluster j, or loss of its members from leaving it."""
    for i in range(norms.shape[0]):
        own = labels[i] == j
        twice = sums[j, i] + sums[j, i]
        after = quadratic + (-twice if own else twice) + norms[i]
        change = np.sqrt(after if after > 0.0 else 0.0) - root
        gain[j, i] = -np.inf if own else change
        loss[i] = -change if own else loss[i]
    if single:
        for i in range(norms.shape[0]):
            if labels[i] == j:
                loss[i] = np.inf


@compiled
def compare(k, gain, loss, net):
    """Best gain over the clusters less the loss, for each patch; the greatest of them."""
    for j in range(0, k, 2):
        other = min(j + 1, k - 1)
        for i in range(net.shape[0]):
            value = gain[j, i] if gain[j, i] > gain[other, i] else gain[other, i]
            value -= loss[i]
            net[i] = value if j == 0 or value > net[i] else net[i]
    a, b, c, d = -np.inf, -np.inf, -np.inf, -np.inf
    for i in range(0, net.shape[0], 4):
        a = net[i] if net[i] > a else a
        b = net[i + 1] if net[i + 1] > b else b
        c = net[i + 2] if net[i + 2] > c else c
        d = net[i + 3] if net[i + 3] > d else d
    return max(max(a, b), max(c, d))


@compiled
def climb(grid, m, k, labels, sums, quadratic, sizes, roots, norms, gain, loss, net):
    """Make the best single-point move until none gains anything; ``sums`` etc. are current."""
    wide = norms.shape[0]
    for i in range(m, wide):
        labels[i] = -1
        loss[i] = np.inf
    old, new = -1, -1
    while True:
        for j in range(k):
            if old < 0 or j in (old, new):
                root = np.sqrt(max(quadratic[j], 0.0))
                roots[j] = root
                single = sizes[j] == 1
                weigh(j, single, sums, norms, labels, quadratic[j], root, gain, loss)
        most = compare(k, gain, loss, net)
        if not most > TOLERANCE:
            break
        at = 0
        while net[at] != most:
            at += 1
        old, new = labels[at], 0
        for j in range(1, k):
            if gain[j, at] > gain[new, at]:
                new = j
        quadratic[old] += norms[at] - 2.0 * sums[old, at]
        quadratic[new] += norms[at] + 2.0 * sums[new, at]
        subtract(sums, old, grid, at, wide)
        add(sums, new, grid, at, wide)
        sizes[old] -= 1
        sizes[new] += 1
        labels[at] = new


@compiled
def measure(m, blocks, labels, sums, within, crossed, squares, lengths):
    """Length of the sum of each subset of blocks, and its square; subsets as bits."""
    for a in range(blocks):
        for b in range(blocks):
            within[a, b] = 0.0
    for i in range(m):
        for a in range(blocks):
            within[a, labels[i]] += sums[a, i]
    squares[0] = 0.0
    crossed[0] = 0.0
    for b in range(blocks):
        for a in range(b):
            for s in range(1 << a):
                crossed[s + (1 << a)] = crossed[s] + 2.0 * within[a, b]
        for s in range(1 << b):
            squares[s + (1 << b)] = squares[s] + (within[b, b] + crossed[s])
    for s in range(1, 1 << blocks):
        lengths[s] = np.rint(np.sqrt(max(squares[s], 0.0)) * FINE) / FINE


@compiled
def unite(blocks, k_max, lengths, best, part):
    """Best objective of each subset of blocks in 1..k_max parts, and the part to split off.

    The parts and ties are those of psi_engine.ops.blocks.
    """
    every = (1 << blocks) - 1
    for s in range(1, every + 1):
        best[1, s] = lengths[s]
        part[1, s] = s
    for k in range(2, k_max + 1):
        for s in range(1, every + 1):
            if s == every or (k < k_max and not s & 1):
                others = s & (s - 1)
                left = others
                best[k, s] = -np.inf
                while left > 0:
                    value = lengths[s ^ left] + best[k - 1, left]
                    if value > best[k, s]:
                        best[k, s] = value
                        part[k, s] = s ^ left
                    left = (left - 1) & others


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
    wide = width(m)
    blocks = min(BLOCKS, m) if hartigan else 0
    most = max(k_max, blocks)
    centres = np.empty(most, np.int64)
    closest, tried, kept, up_to = np.empty(wide), np.empty(wide), np.empty(wide), np.empty(m)
    near = np.empty((most, m), np.int64)
    labels, fresh = np.empty(wide, np.int64), np.empty(wide, np.int64)
    sums, quadratic, roots = np.empty((most, wide)), np.empty(most), np.empty(most)
    sizes = np.empty(most, np.int64)
    norms, gain, loss, net = np.zeros(wide), np.empty((most, wide)), np.empty(wide), np.empty(wide)
    block, block_sums = np.empty(wide, np.int64), np.empty((blocks, wide))
    block_sizes, home = np.empty(blocks, np.int64), np.empty(blocks, np.int64)
    within, subsets = np.empty((blocks, blocks)), 1 << blocks
    crossed, squares, lengths = np.empty(subsets), np.empty(subsets), np.empty(subsets)
    united = min(k_max, blocks)
    value_of = np.full((united + 1, subsets), -np.inf)
    part_of = np.zeros((united + 1, subsets), np.int64)
    for i in range(m):
        norms[i] = grid[i, i]
    for at in range(k_max - k_min + 1):
        objective[at] = -np.inf
    state = extend(mix(U64(key) + GOLDEN), SEEDING)
    for restart in range(restarts):
        drawn = extend(state, restart)
        seed(grid, m, norms, drawn, most, scale, centres, closest, tried, kept, up_to, near)
        if hartigan:
            for i in range(m):
                block[i] = near[blocks - 1, i]
            for j in range(blocks):
                block[centres[j]] = j
            sum_up(grid, m, blocks, block, block_sums, quadratic, block_sizes)
            climb(
                grid, m, blocks, block, block_sums, quadratic, block_sizes, roots, norms, gain,
                loss, net,
            )  # fmt: skip
            measure(m, blocks, block, block_sums, within, crossed, squares, lengths)
            unite(blocks, united, lengths, value_of, part_of)
        for k in range(k_min, k_max + 1):
            if hartigan and k <= blocks:
                left = (1 << blocks) - 1
                for j in range(k):
                    taken = part_of[k - j, left]
                    left ^= taken
                    quadratic[j] = squares[taken]
                    sizes[j] = 0
                    for l in range(wide):
                        sums[j, l] = 0.0
                    for b in range(blocks):
                        if taken >> b & 1:
                            home[b] = j
                            sizes[j] += block_sizes[b]
                            add(sums, j, block_sums, b, wide)
                for i in range(m):
                    labels[i] = home[block[i]]
            else:
                for i in range(m):
                    labels[i] = near[k - 1, i]
                for j in range(k):
                    labels[centres[j]] = j
                sum_up(grid, m, k, labels, sums, quadratic, sizes)
            if hartigan:
                climb(grid, m, k, labels, sums, quadratic, sizes, roots, norms, gain, loss, net)
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
