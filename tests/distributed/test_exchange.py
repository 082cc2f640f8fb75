"""The miners of several ranks, joined by channel: what one miner would have found, to the bit."""

from __future__ import annotations

import pytest

from psi_engine.distributed import ALONE
from psi_engine.mining import exchange
from tests.distributed.threads import on_ranks
from tests.mining.test_miner import (
    LAYER,
    assert_brute_force,
    assert_same,
    broken,
    config,
    mined,
    negative,
    ordinary,
    tied,
)


@pytest.mark.parametrize("sites", ["per-image", "all"])
@pytest.mark.parametrize("make", [ordinary, tied, negative, broken])
@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_equals_brute_force_and_one_process(size: int, make, sites: str) -> None:
    maps, c = make(), config(sites)
    ids = [3 * i + 1 for i in range(len(maps))]
    whole = mined(maps, ids, c).result()

    def work(world):
        part = world.share(len(ids))
        return exchange({LAYER: mined(maps[part], ids[part], c, step=3)}, world)

    found = on_ranks(size, work)
    assert found[1:] == [None] * (size - 1)
    assert_same(found[0][LAYER], whole)
    assert_brute_force(found[0][LAYER], maps, ids, c)


def test_a_rank_may_own_no_channel_and_have_seen_no_image() -> None:
    maps, c = ordinary(channels=2), config()
    ids = list(range(len(maps)))

    def work(world):
        part = slice(0, 9) if world.rank == 1 else slice(9, 17) if world.rank == 3 else slice(0, 0)
        return exchange({LAYER: mined(maps[part], ids[part], c)}, world)

    assert_same(on_ranks(4, work)[0][LAYER], mined(maps, ids, c).result())


def test_alone_it_is_the_result() -> None:
    maps, c = tied(), config()
    miner = mined(maps, list(range(17)), c)
    assert_same(exchange({LAYER: miner}, ALONE)[LAYER], miner.result())
