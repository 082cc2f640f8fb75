"""The compiled loops where channels fill several blocks, threads share them and layouts differ."""

from __future__ import annotations

import numba
import pytest
import torch
from torch import Tensor

from psi_engine.mining.miner import Miner
from psi_engine.ops import _numba_mining
from psi_engine.types import ActivationShape
from tests.mining.test_miner import (
    LAYER,
    SITES,
    assert_brute_force,
    assert_same,
    broken,
    config,
    mined,
    ordinary,
    tied,
)

WIDE = _numba_mining._BLOCK + 88


def wide(make) -> Tensor:
    """More channels than a block, no two alike in what they hold."""
    maps = make()
    copies = -(-WIDE // maps.shape[1])
    return torch.cat([maps.roll(i, 0) for i in range(copies)], dim=1)[:, :WIDE]


@pytest.mark.parametrize("sites", SITES)
@pytest.mark.parametrize("make", [ordinary, tied, broken])
def test_channels_of_several_blocks(make, sites: str) -> None:
    maps, ids = wide(make), list(range(17))
    found = mined(maps, ids, config(sites)).result()
    assert_brute_force(found, maps, ids, config(sites))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_threads_share_the_channels(layout: torch.memory_format, monkeypatch) -> None:
    maps, ids = wide(broken), list(range(17))
    alone = mined(maps, ids, config()).result()
    monkeypatch.setattr(_numba_mining, "_TASK", 1)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr(numba.config, "NUMBA_NUM_THREADS", 2)
    assert_same(mined(maps.contiguous(memory_format=layout), ids, config()).result(), alone)


@pytest.mark.parametrize("make", [ordinary, tied, broken])
def test_neither_layout_nor_stride_changes_a_bit(make) -> None:
    maps, ids = make(), list(range(17))
    expected = mined(maps, ids, config()).result()
    spread = torch.zeros(17, 4, 3, 8)[..., ::2]
    spread.copy_(maps)
    assert not spread.is_contiguous()
    for same in (maps.contiguous(memory_format=torch.channels_last), spread):
        assert_same(mined(same, ids, config()).result(), expected)


@pytest.mark.parametrize("sites", SITES)
def test_a_result_stays_as_it_was_when_mining_goes_on(sites: str) -> None:
    maps = broken()
    miner = mined(maps[:8], list(range(8)), config(sites))
    early = miner.result()
    miner.update(maps[8:], torch.arange(8, 17))
    assert_same(early, mined(maps[:8], list(range(8)), config(sites)).result())


@pytest.mark.parametrize("pool", [1, 20, 150, 1000])
def test_a_pool_of_any_size_before_and_after_it_is_full(pool: int) -> None:
    """17 images of 12 sites: full within the first image, of several ranks, or never."""
    maps, ids = ordinary(), [5 * i for i in range(17)]
    for step in (1, 4, 17):
        found = mined(maps, ids, config(pool=pool), step).result()
        assert_brute_force(found, maps, ids, config(pool=pool))


def test_late_images_between_fresh_ones() -> None:
    """Ids that come out of order take the slow way in; the quick way goes on after them."""
    maps, c = broken(), config()
    miner = Miner(LAYER, ActivationShape("map", 4, (3, 4)), c)
    for part in (slice(0, 4), slice(9, 12), slice(4, 9), slice(12, 17)):
        miner.update(maps[part], torch.arange(17)[part])
    assert_same(miner.result(), mined(maps, list(range(17)), c).result())
