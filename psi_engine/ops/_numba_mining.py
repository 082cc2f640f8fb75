"""One batch of activations into sorted buffers and sums, as loops for numba.

The same buffers as :mod:`psi_engine.ops.topk` makes, entry by entry. A channel's K-th value grows
quickly, so that after a few batches nearly every site costs one comparison: no sort at all.
"""
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from psi_engine.ops._jit import compiled, in_threads
from psi_engine.ops.moments import LIMBS, WEIGHTS, Moments
from psi_engine.ops.topk import Entries


def survey(x: Tensor, image_ids: Tensor, top: Entries, bottom: Entries, per_image: bool) -> Moments:
    """Put a batch's extremes into the buffers, in place, and sum up its finite sites.

    Parameters
    ----------
    x : Tensor, float32 (batch, channels, sites), contiguous
    image_ids : Tensor, int64 (batch,)
        None of which the buffers hold.
    top, bottom : Entries (channels, k)
        Sorted; the bottom holds the top of −x. Width 0 = not wanted.
    per_image : bool
        Only the best site of each image enters.

    Returns
    -------
    Moments
        Of the batch; each image's sums are rounded once, in the order of its sites.
    """
    batch, channels, sites = x.shape
    low, high = torch.empty(channels), torch.empty(channels)
    totals = torch.zeros(channels, LIMBS, dtype=torch.int64)
    squares = torch.zeros_like(totals)
    zeros = torch.empty(channels, dtype=torch.int64)
    nonfinite = torch.empty_like(zeros)
    found = (low, high, totals, squares, zeros, nonfinite)
    buffers = (part.numpy() for part in (*top, *bottom))
    in_threads(
        _survey, channels, x.numpy(), image_ids.numpy(), per_image, *buffers,
        *(part.numpy() for part in found),
    )  # fmt: skip
    finite = batch * sites - nonfinite
    return Moments(low, high, totals.T, squares.T, zeros, finite, nonfinite)


def insert(kept: Entries, new: Entries) -> None:
    """Put entries into sorted buffers, in place.

    Parameters
    ----------
    kept : Entries (channels, k)
        Sorted.
    new : Entries (channels, n)
        In any order; no site or image of theirs is kept already, none comes twice.
    """
    arrays = (part.contiguous().numpy() for part in new)
    in_threads(_insert, len(kept.keys), *(part.numpy() for part in kept), *arrays)


@compiled
def _insert(start, stop, keys, sites, values, new_keys, new_sites, new_values):
    for c in range(start, stop):
        for j in range(new_keys.shape[1]):
            if keys.shape[1] > 0 and new_keys[c, j] >= keys[c, -1]:  # most never get here
                key, site, value = new_keys[c, j], new_sites[c, j], new_values[c, j]
                place(keys[c], sites[c], values[c], key, site, value)
    return True


@compiled
def place(keys, sites, values, key, site, value):
    """Insert one entry where it belongs, unless it comes after the last one."""
    at = keys.shape[0] - 1
    if at < 0 or key < keys[at] or (key == keys[at] and site >= sites[at]):
        return
    while at > 0 and (keys[at - 1] < key or (keys[at - 1] == key and sites[at - 1] > site)):
        keys[at], sites[at], values[at] = keys[at - 1], sites[at - 1], values[at - 1]
        at -= 1
    keys[at], sites[at], values[at] = key, site, value


@compiled
def add_limbs(limbs, c, x):
    """Add a float64 to integers of 40 bits, as :func:`psi_engine.ops.moments.to_limbs` does."""
    for i in range(LIMBS):
        if x >= WEIGHTS[i] or x <= -WEIGHTS[i]:
            limb = np.trunc(x / WEIGHTS[i])
            x -= limb * WEIGHTS[i]
            limbs[c, i] += np.int64(limb)


@compiled
def _survey(
    start, stop, x, image_ids, per_image,
    top_keys, top_sites, top_values, bottom_keys, bottom_sites, bottom_values,
    low, high, totals, squares, zeros, nonfinite,
):  # fmt: skip
    batch, _, count = x.shape
    zero = np.float32(0)  # added to what is kept: −0 counts as +0
    has_top, has_bottom = top_keys.shape[1] > 0, bottom_keys.shape[1] > 0
    wide_top, wide_bottom = has_top and not per_image, has_bottom and not per_image
    for c in range(start, stop):
        low[c], high[c], zeros[c], nonfinite[c] = np.inf, -np.inf, 0, 0
        for b in range(batch):
            first = image_ids[b] * count
            total = square = 0.0
            none = missing = 0
            best, best_at = np.float32(-np.inf), -1
            worst, worst_at = np.float32(np.inf), -1
            for s in range(count):
                value = x[b, c, s]
                if not np.isfinite(value):
                    missing += 1
                    continue
                wide = np.float64(value)
                total += wide
                square += wide * wide
                none += value == 0
                if value > best:
                    best, best_at = value, s
                if value < worst:
                    worst, worst_at = value, s
                if wide_top and value > top_keys[c, -1]:
                    key = value + zero
                    place(top_keys[c], top_sites[c], top_values[c], key, first + s, key)
                if wide_bottom and -value > bottom_keys[c, -1]:
                    key = -value + zero
                    place(bottom_keys[c], bottom_sites[c], bottom_values[c], key, first + s, key)
            add_limbs(totals, c, total)
            add_limbs(squares, c, square)
            zeros[c] += none
            nonfinite[c] += missing
            if best_at < 0:
                continue
            low[c], high[c] = min(low[c], worst), max(high[c], best)
            # Asked here, because views of the buffers cost more than the comparison.
            if per_image and has_top and best > top_keys[c, -1]:
                key = best + zero
                place(top_keys[c], top_sites[c], top_values[c], key, first + best_at, key)
            if per_image and has_bottom and -worst > bottom_keys[c, -1]:
                key = -worst + zero
                place(bottom_keys[c], bottom_sites[c], bottom_values[c], key, first + worst_at, key)
        low[c] += zero
        high[c] += zero
    return True
