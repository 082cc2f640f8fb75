"""One batch of activations into sorted buffers and sums, as loops for numba.

The same buffers as :mod:`psi_engine.ops.topk` makes, entry by entry. The sites of an image are
folded row by row, many channels at a time, which a processor does in wide registers and in the
layout that a network's channels-last outputs have. A channel's K-th value grows quickly, so that
after a few batches nearly every image then costs a channel one comparison: no sort at all.
"""
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import numpy as np
from torch import Tensor

from psi_engine.ops._jit import compiled, in_threads
from psi_engine.ops._numba_seeding import GOLDEN, U64, extend, mix, unit
from psi_engine.ops.moments import LIMBS, WEIGHTS, Moments
from psi_engine.ops.topk import NO_PRIORITY, PRIORITY_BITS, Entries

_BLOCK = 512  # channels whose sums a core's nearest cache holds
_TASK = 1 << 18  # activations that are worth a thread's start
_INVERSES = tuple(1 / weight for weight in WEIGHTS)
_INFINITY = int(np.float64(np.inf).view(np.int64))
_WEIGHT_BITS = tuple(int(np.float64(weight).view(np.int64)) for weight in WEIGHTS)


def survey(
    x: Tensor,
    image_ids: Tensor,
    top: Entries,
    bottom: Entries,
    random: Entries,
    channel_keys: Tensor,
    per_image: bool,
    moments: Moments,
) -> None:
    """Put a batch's sites into the buffers and add up its finite ones, all in place.

    Parameters
    ----------
    x : Tensor, float32 (batch, channels, sites)
        Fastest where it is contiguous with the channels last, then with the sites last.
    image_ids : Tensor, int64 (batch,)
        None of which the buffers hold.
    top, bottom, random : Entries (channels, k)
        Sorted; the bottom holds the top of −x, ``random`` one site of an image. Width 0 = not
        wanted.
    channel_keys : Tensor, int64 (channels,)
        Keys of the random sites.
    per_image : bool
        Only the best site of each image enters the top and the bottom.
    moments : Moments
        Contiguous. Each image's sums are rounded once, in the order of its sites.
    """
    batch, channels, sites = x.shape
    rows = x.transpose(1, 2)
    by_rows = rows.is_contiguous()
    source = rows if by_rows else x.contiguous()
    in_threads(
        _survey, channels, source.numpy(), by_rows, image_ids.numpy(), per_image,
        *(tuple(part.numpy() for part in kept) for kept in (top, bottom, random)),
        channel_keys.numpy(), tuple(part.numpy() for part in moments),
        least=-(-_TASK // (batch * sites)),
    )  # fmt: skip


def enter_pool(pool: Entries, image_ids: Tensor, sites: int, key: Tensor) -> None:
    """Let the sites of a batch into the pool, in place: the first ranks of each image.

    Parameters
    ----------
    pool : Entries (1, n)
        Sorted; see :class:`psi_engine.mining.miner.Miner`.
    image_ids : Tensor, int64 (batch,)
        Ascending, all after those of the pool.
    sites : int
        Of an image.
    key : Tensor, int64 ()
    """
    keys, kept = (part[0].numpy() for part in (pool.keys, pool.sites))
    _enter_pool(keys, kept, image_ids.numpy(), sites, int(key))


@compiled
def _enter_pool(keys, kept, image_ids, sites, key):
    size = keys.shape[0]
    state = mix(U64(key) + GOLDEN)
    # No rank behind the last kept one can enter.
    worst = keys[-1]
    ranks = sites if worst == NO_PRIORITY else min(sites, np.int64(~worst >> PRIORITY_BITS) + 1)
    priority = np.empty(sites, np.int64)
    best, where = np.empty(ranks, np.int64), np.empty(ranks, np.int64)
    new_keys = np.empty(image_ids.shape[0] * ranks, np.int64)
    new_sites = np.empty(image_ids.shape[0] * ranks, np.int64)
    count = 0
    for b in range(image_ids.shape[0]):
        first = image_ids[b] * sites
        for s in range(sites):
            priority[s] = np.int64(extend(state, first + s))
        bound = np.max(priority) if ranks == sites else np.partition(priority, ranks - 1)[ranks - 1]
        at = 0
        for s in range(sites):
            if priority[s] <= bound:  # no two are equal: the hash is a bijection of the site
                best[at], where[at] = priority[s], s
                at += 1
        order = np.argsort(best)
        for rank in range(ranks):
            high = (best[order[rank]] >> (64 - PRIORITY_BITS)) + (1 << (PRIORITY_BITS - 1))
            new_key = ~((rank << PRIORITY_BITS) | high)
            if new_key > worst:
                new_keys[count], new_sites[count] = new_key, first + where[order[rank]]
                count += 1
    if count == 0:
        return
    order = np.argsort(~new_keys[:count], kind="mergesort")  # stable: equal keys by site
    old_keys, old_sites = keys.copy(), kept.copy()
    i = j = 0
    for at in range(size):
        if j < count and new_keys[order[j]] > old_keys[i]:
            keys[at], kept[at] = new_keys[order[j]], new_sites[order[j]]
            j += 1
        else:
            keys[at], kept[at] = old_keys[i], old_sites[i]
            i += 1


@compiled
def place(kept, c, key, site, value):
    """Insert one entry of a channel where it belongs, unless it comes after the last one."""
    keys, sites, values = kept[0][c], kept[1][c], kept[2][c]
    at = keys.shape[0] - 1
    if at < 0 or key < keys[at] or (key == keys[at] and site >= sites[at]):
        return
    while at > 0 and (keys[at - 1] < key or (keys[at - 1] == key and sites[at - 1] > site)):
        keys[at], sites[at], values[at] = keys[at - 1], sites[at - 1], values[at - 1]
        at -= 1
    keys[at], sites[at], values[at] = key, site, value


@compiled
def _survey(
    start, stop, source, by_rows, image_ids, per_image, top, bottom, random, channel_keys, moments
):
    minimum, maximum, totals, squares, zeros, finite, nonfinite = moments
    zero = np.float32(0)  # added to what is kept: −0 counts as +0
    batch = source.shape[0]
    sites = source.shape[1] if by_rows else source.shape[2]
    width = min(_BLOCK, stop - start)
    # Of an image: rows of its sites, where they have to be made, and what they come to.
    made = np.empty((0 if by_rows else sites, width), np.float32)
    low, high = np.empty(width, np.float32), np.empty(width, np.float32)
    total, square = np.empty(width), np.empty(width)
    state, priority = np.empty(width, np.uint64), np.empty(width, np.int64)
    none, better = np.empty(width, np.int32), np.empty(width, np.int64)
    # The last kept keys of each channel side by side: nearly always the only ones that are asked.
    floor, ceiling = np.empty(width, np.float32), np.empty(width, np.float32)
    last = np.empty(width, np.int64)
    for first in range(start, stop, width):
        n = min(width, stop - first)
        none[:] = 0
        for c in range(n):
            row = first + c
            finite[row] += batch * sites
            state[c] = mix(U64(channel_keys[row]) + GOLDEN)
            floor[c] = top[0][row, -1] if top[0].shape[1] > 0 else np.inf
            ceiling[c] = -bottom[0][row, -1] if bottom[0].shape[1] > 0 else -np.inf
            last[c] = random[0][row, -1] if random[0].shape[1] > 0 else 0
        for b in range(batch):
            image = image_ids[b]
            if by_rows:
                rows, offset = source[b], first
            else:
                for c in range(n):
                    for s in range(sites):
                        made[s, c] = source[b, first + c, s]
                rows, offset = made, 0
            _fold(rows, offset, n, low, high, total, square, none)
            if _largest(total[:n]) >= _INFINITY:
                _repair(rows, offset, n, first, low, high, total, square, finite, nonfinite)
            for i in range(_where_above(high, floor, n, better)):
                c, row = better[i], first + better[i]
                _take_top(rows, offset + c, row, image, per_image, high[c], top)
                floor[c] = top[0][row, -1]
            for i in range(_where_above(ceiling, low, n, better)):
                c, row = better[i], first + better[i]
                _take_bottom(rows, offset + c, row, image, per_image, low[c], bottom)
                ceiling[c] = -bottom[0][row, -1]
            if random[0].shape[1] > 0:
                for c in range(n):
                    priority[c] = np.int64(extend(state[c], image))
                for i in range(_where_above(priority, last, n, better)):
                    c, row = better[i], first + better[i]
                    _take_random(rows, offset + c, row, image, priority[c], random)
                    last[c] = random[0][row, -1]
            for c in range(n):
                minimum[first + c] = min(minimum[first + c], low[c]) + zero
                maximum[first + c] = max(maximum[first + c], high[c]) + zero
            _add_limbs(totals, first, total[:n])
            _add_limbs(squares, first, square[:n])
        for c in range(n):
            zeros[first + c] += none[c]
    return True


@compiled
def _fold(rows, offset, n, low, high, total, square, none):
    """Extremes and sums of each channel over the sites; what is not finite spoils its sums."""
    for c in range(n):
        low[c], high[c], total[c], square[c] = np.inf, -np.inf, 0.0, 0.0
    for s in range(rows.shape[0]):
        row = rows[s, offset : offset + n]
        # One loop for each kind: with more arrays in one, no compiler dares to widen it.
        for c in range(n):
            low[c] = row[c] if row[c] < low[c] else low[c]
            high[c] = row[c] if row[c] > high[c] else high[c]
        for c in range(n):
            wide = np.float64(row[c])
            total[c] += wide
            square[c] += wide * wide
        for c in range(n):
            none[c] += np.int32(row[c] == 0)


@compiled
def _repair(rows, offset, n, first, low, high, total, square, finite, nonfinite):
    """Leave out what is not finite, in the channels that have such sites."""
    for c in range(n):
        if np.isfinite(total[c]):  # a float64 holds the sum of any float32 values
            continue
        low[c], high[c], total[c], square[c] = np.inf, -np.inf, 0.0, 0.0
        for s in range(rows.shape[0]):
            value = rows[s, offset + c]
            if not np.isfinite(value):
                finite[first + c] -= 1
                nonfinite[first + c] += 1
                continue
            wide = np.float64(value)
            total[c] += wide
            square[c] += wide * wide
            low[c], high[c] = min(low[c], value), max(high[c], value)


@compiled
def _where_above(values, bounds, n, found):
    """Count and list the places where a value is above its bound, without a branch."""
    count = 0
    for c in range(n):
        found[count] = c
        count += values[c] > bounds[c]
    return count


@compiled
def _take_top(rows, column, row, image, per_image, high, top):
    """The image's best site, the first of equal ones, or all sites that may enter."""
    zero = np.float32(0)
    sites = rows.shape[0]
    for s in range(sites):
        value = rows[s, column]
        wanted = value == high if per_image else value > top[0][row, -1]
        if wanted and np.isfinite(value):
            place(top, row, value + zero, image * sites + s, value + zero)
            if per_image:
                return


@compiled
def _take_bottom(rows, column, row, image, per_image, low, bottom):
    zero = np.float32(0)
    sites = rows.shape[0]
    for s in range(sites):
        value = rows[s, column]
        wanted = value == low if per_image else -value > bottom[0][row, -1]
        if wanted and np.isfinite(value):
            place(bottom, row, -value + zero, image * sites + s, -value + zero)
            if per_image:
                return


@compiled
def _take_random(rows, column, row, image, priority, random):
    """The image's random site, where it is finite."""
    sites = rows.shape[0]
    key = mix(U64(priority) + GOLDEN)
    at = np.int64(unit(extend(key, 1)) * sites)
    value = rows[at, column]
    if np.isfinite(value):
        place(random, row, priority, image * sites + at, value + np.float32(0))


@compiled
def _largest(x):
    """Bits of the largest magnitude; they order as the magnitudes do, NaN after infinity."""
    bits = x.view(np.int64)
    most = np.int64(0)
    for c in range(bits.shape[0]):
        most = max(most, bits[c] & 0x7FFFFFFFFFFFFFFF)
    return most


@compiled
def _add_limbs(limbs, first, rest):
    """Add float64s to integers of 40 bits, as :func:`psi_engine.ops.moments.to_limbs` does.

    Nothing of them is left in ``rest``.
    """
    n = rest.shape[0]
    for i in range(LIMBS):
        most = _largest(rest)
        if most == 0:
            return
        if most < _WEIGHT_BITS[i]:
            continue
        into = limbs[i, first : first + n]
        weight, inverse = WEIGHTS[i], _INVERSES[i]
        for c in range(n):
            limb = np.int64(rest[c] * inverse)  # towards 0
            rest[c] -= np.float64(limb) * weight
            into[c] += limb
