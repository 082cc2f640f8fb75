"""Exact selection of the best sites of each channel.

An *entry* is (key, site, value): entries are ordered by key descending, then site ascending, and
a buffer keeps the first ``k`` of every channel. ``torch.topk`` alone is not enough: it is free to
return any of the entries that tie for the last place. Sites are int64 because 32 bits do not hold
(image, row, column) of a large data set: site = image · (H·W) + u · W + v.

Empty entries have the lowest key of their dtype and the site :data:`NO_SITE`, so they order last
and fill buffers that have not seen ``k`` sites yet. Buffers start from −inf, never from 0: a
channel may have no positive activation at all.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

NO_SITE = torch.iinfo(torch.int64).max
"""Site of an empty entry; orders after every real site."""

NO_PRIORITY = torch.iinfo(torch.int64).min
"""Key of an empty entry whose key is an integer."""

PRIORITY_BITS = 40
"""Of the 63 bits of a pool key; the others hold the rank of the site in its image."""


class Entries(NamedTuple):
    """Candidates or kept sites of each channel.

    keys : float32 or int64 (channels, n), greater is better, never NaN.
    sites : int64 (channels, n). values : float32 (channels, n), carried along.
    """

    keys: Tensor
    sites: Tensor
    values: Tensor


def empty(channels: int, k: int, key_dtype: torch.dtype, device: torch.device | str) -> Entries:
    """A buffer of ``k`` empty entries for each channel."""
    lowest = -torch.inf if key_dtype.is_floating_point else NO_PRIORITY
    return Entries(
        torch.full((channels, k), lowest, dtype=key_dtype, device=device),
        torch.full((channels, k), NO_SITE, dtype=torch.int64, device=device),
        torch.full((channels, k), torch.nan, dtype=torch.float32, device=device),
    )


def merge(a: Entries, b: Entries, k: int, sites_per_group: int) -> Entries:
    """The first ``k`` of two sets of entries, with at most one entry per group.

    Parameters
    ----------
    a, b : Entries
        (channels, n) and (channels, m), in any order.
    k : int
        How many to keep; the result has min(k, n + m) columns.
    sites_per_group : int
        Entries whose ``site // sites_per_group`` agree are one group and only the best stays:
        1 drops repeats of a site, H·W keeps one site per image.

    Returns
    -------
    Entries
        (channels, min(k, n + m)), ordered by key descending, then site ascending.

    Notes
    -----
    Keeping the best of each group and then the first k is associative, commutative and
    idempotent, whichever entries earlier merges dropped: a dropped entry was preceded by k
    entries of k other groups, and each of those groups can only move forward.
    """
    keys = torch.cat([a.keys, b.keys], dim=1)
    sites = torch.cat([a.sites, b.sites], dim=1)
    values = torch.cat([a.values, b.values], dim=1)
    # Stable sorts, last key first: group by group the best entry leads.
    by_site = torch.argsort(sites, dim=1, stable=True)
    order = by_site.gather(
        1, torch.argsort(keys.gather(1, by_site), dim=1, descending=True, stable=True)
    )
    keys, sites, values = (x.gather(1, order) for x in (keys, sites, values))
    groups = sites.div(sites_per_group, rounding_mode="floor")
    by_group = torch.argsort(groups, dim=1, stable=True)
    grouped = groups.gather(1, by_group)
    repeat_in_group = torch.zeros_like(grouped, dtype=torch.bool)
    repeat_in_group[:, 1:] = grouped[:, 1:] == grouped[:, :-1]
    repeat = torch.zeros_like(repeat_in_group).scatter_(1, by_group, repeat_in_group)
    # What stays keeps its order: a stable sort of "is a repeat" is a compaction. Repeated empty
    # entries are all alike, so pushing them back changes nothing.
    kept = torch.argsort(repeat.to(torch.uint8), dim=1, stable=True)[:, :k]
    blank = repeat.gather(1, kept)
    out = Entries(keys.gather(1, kept), sites.gather(1, kept), values.gather(1, kept))
    nothing = empty(1, 1, keys.dtype, keys.device)
    return Entries(*(torch.where(blank, gap, x) for x, gap in zip(out, nothing, strict=True)))


def append(kept: Entries, new: Entries) -> Entries:
    """Merge in entries of groups that come after all kept ones.

    Parameters
    ----------
    kept : Entries (channels, k)
        Sorted.
    new : Entries (channels, n)
        One per group, of groups whose sites all come after those kept; where keys are equal,
        sites ascend.

    Returns
    -------
    Entries
        (channels, k), contiguous: what :func:`merge` gives, for one sort instead of four.
    """
    k = kept.keys.shape[1]
    keys = torch.cat([kept.keys, new.keys], dim=1)
    keys, order = torch.sort(keys, dim=1, descending=True, stable=True)
    order = order[:, :k]
    sites = torch.cat([kept.sites, new.sites], dim=1).gather(1, order)
    values = torch.cat([kept.values, new.values], dim=1).gather(1, order)
    return Entries(keys[:, :k].contiguous(), sites, values)


def ordered_bits(x: Tensor) -> Tensor:
    """Integers that order as the floats do: float32 (no NaN, no −0) to int64 in [−2³¹, 2³¹)."""
    bits = x.contiguous().view(torch.int32).to(torch.int64)
    return torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits)


def best_of_batch(keys: Tensor, image_ids: Tensor, k: int) -> Entries:
    """The ``k`` best sites of each channel among all sites of a batch, ties to the first site.

    Parameters
    ----------
    keys : Tensor, float32 (batch, channels, sites)
        No NaN and no −0; −inf marks sites to leave out.
    image_ids : Tensor, int64 (batch,)
        Distinct, in any order.
    k : int

    Returns
    -------
    Entries
        (channels, min(k, batch · sites)), best first.

    Notes
    -----
    One int64 per site holds the ordered bits of its key above the complement of its position in
    (image, site) order. No two are equal, so ``torch.topk`` has no ties left to choose from.
    """
    batch, channels, sites = keys.shape
    rank = torch.argsort(torch.argsort(image_ids))
    position = rank[:, None, None] * sites + torch.arange(sites, device=keys.device)
    packed = (ordered_bits(keys) << 32) | (0xFFFFFFFF - position)
    packed = packed.permute(1, 0, 2).reshape(channels, batch * sites)
    packed = torch.topk(packed, min(k, batch * sites), dim=1).values
    bits = packed >> 32
    best = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits).to(torch.int32).view(torch.float32)
    position = 0xFFFFFFFF - (packed & 0xFFFFFFFF)
    image = torch.sort(image_ids).values[position.div(sites, rounding_mode="floor")]
    site = torch.where(best == -torch.inf, NO_SITE, image * sites + position % sites)
    return Entries(best, site, best)


def best_of_images(keys: Tensor, image_ids: Tensor) -> Entries:
    """The best site of each image for each channel, ties to the first site.

    Parameters
    ----------
    keys : Tensor, float32 (batch, channels, sites)
        No NaN; −inf marks sites to leave out.
    image_ids : Tensor, int64 (batch,)

    Returns
    -------
    Entries
        (channels, batch), in batch order.
    """
    # torch.max over a dimension returns the first of equal maxima, and −0 equals +0.
    best, position = keys.max(dim=2)
    site = torch.where(best == -torch.inf, NO_SITE, image_ids[:, None] * keys.shape[2] + position)
    return Entries(best.T + 0.0, site.T, best.T + 0.0)
