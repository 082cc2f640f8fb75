"""Exact selection: ties, groups, and floats as ordered integers."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from psi_engine.ops.topk import (
    NO_SITE,
    Entries,
    best_of_batch,
    best_of_images,
    empty,
    merge,
    ordered_bits,
)

FLOATS = st.floats(width=32, allow_nan=False).map(lambda x: x + 0.0)


@given(st.lists(FLOATS, min_size=2, max_size=20))
def test_ordered_bits_order_as_the_floats(values) -> None:
    bits = ordered_bits(torch.tensor(values, dtype=torch.float32)).tolist()
    for a, x in zip(bits, values, strict=True):
        assert -(2**31) <= a < 2**31
        for b, y in zip(bits, values, strict=True):
            assert (a < b) == (x < y)


def entries(rows: list[tuple[float, int]]) -> Entries:
    keys = torch.tensor([[key for key, _ in rows]], dtype=torch.float32)
    sites = torch.tensor([[site for _, site in rows]], dtype=torch.int64)
    return Entries(keys, sites, keys.clone())


SITED = st.lists(st.integers(0, 11), max_size=9, unique=True)


@given(a=SITED, b=SITED, k=st.integers(0, 8), group=st.sampled_from([1, 3]))
def test_merge_is_the_sorted_union(a, b, k, group) -> None:
    # A site has one value wherever it is met; few values make many ties.
    def make(sites: list[int]) -> Entries:
        return entries([(float(site * 7 % 3), site) for site in sites])

    best: dict[int, tuple[float, int]] = {}
    for site in {*a, *b}:
        here = (-float(site * 7 % 3), site)
        best[site // group] = min(best.get(site // group, here), here)
    expected = [(-key, site) for key, site in sorted(best.values())][:k]
    got = merge(make(a), make(b), k, group)
    found = list(zip(got.keys[0].tolist(), got.sites[0].tolist(), strict=True))
    assert found[: len(expected)] == expected
    assert all(rest == (-torch.inf, NO_SITE) for rest in found[len(expected) :])
    assert len(found) == min(k, len(a) + len(b))


def test_empty_entries_order_last_and_stay_empty() -> None:
    got = merge(empty(1, 3, torch.float32, "cpu"), entries([(-5.0, 2)]), 3, 1)
    assert got.keys.tolist() == [[-5.0, -torch.inf, -torch.inf]]
    assert got.sites.tolist() == [[2, NO_SITE, NO_SITE]]
    assert got.values.isnan().tolist() == [[False, True, True]]


def test_ties_at_the_last_place_go_to_the_first_site() -> None:
    """torch.topk alone may return any of these zeros."""
    keys = torch.zeros(3, 2, 500)
    got = best_of_batch(keys, torch.tensor([9, 4, 7]), 5)
    for row in got.sites.sort(dim=1).values.tolist():
        assert row == [4 * 500 + i for i in range(5)]


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_the_first_of_equal_maxima_is_the_image_s_site(memory_format) -> None:
    maps = torch.full((2, 3, 20, 20), -0.0)
    maps[:, :, 7:, 3:] = 0.0  # no greater than −0
    keys = maps.contiguous(memory_format=memory_format).flatten(2)
    got = best_of_images(keys, torch.tensor([5, 2]))
    assert got.sites.tolist() == [[5 * 400, 2 * 400]] * 3
    assert not torch.signbit(got.values).any()


def test_left_out_sites_are_no_sites() -> None:
    keys = torch.full((1, 1, 4), -torch.inf)
    keys[0, 0, 2] = -1e30
    for got in (best_of_batch(keys, torch.tensor([0]), 3),):
        assert sorted(got.sites[0].tolist()) == [2, NO_SITE, NO_SITE]
    assert best_of_images(keys[:, :, :2], torch.tensor([0])).sites.tolist() == [[NO_SITE]]
