"""One layer's miner against brute force, and the laws of its merge."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from psi_engine.config import MineConfig
from psi_engine.errors import InputError
from psi_engine.mining.miner import Miner
from psi_engine.ops.moments import dead_channels
from psi_engine.types import ActivationShape, LayerSites, SiteSet
from tests.reference import mining as reference

LAYER = "block.1"
SITES = ("per-image", "all")


def config(sites: str = "per-image", **changes: int) -> MineConfig:
    sizes = {"top_k": 6, "bottom_k": 4, "reservoir": 5, "pool": 20, "seed": 3} | changes
    return MineConfig(sites=sites, **sizes)


def mined(
    maps: Tensor, ids: list[int], c: MineConfig, step: int = 5, channels: Tensor | None = None
) -> Miner:
    shape = ActivationShape("map", maps.shape[1], (maps.shape[2], maps.shape[3]))
    miner = Miner(LAYER, shape, c, channels)
    for i in range(0, len(ids), step):
        miner.update(maps[i : i + step], torch.tensor(ids[i : i + step]))
    return miner


def listed(found: SiteSet) -> list[list[tuple[float, int, int, int]]]:
    rows = zip(*(x.tolist() for x in found), strict=True)
    return [[site for site in zip(*row, strict=True) if site[1] >= 0] for row in rows]


def assert_brute_force(
    result: LayerSites, maps: Tensor, ids: list[int], c: MineConfig, layer: str = LAYER
) -> None:
    x = maps.float().numpy()
    channels = result.channels.tolist()
    assert listed(result.top) == reference.extremes(x, ids, c.top_k, c.sites, True)
    assert listed(result.bottom) == reference.extremes(x, ids, c.bottom_k, c.sites, False)
    assert listed(result.random) == reference.reservoir(
        x, ids, c.reservoir, c.seed, layer, channels
    )
    pool = list(zip(*(part.tolist() for part in result.pool), strict=True))
    assert pool == reference.pool(ids, maps.shape[2:], c.pool, c.seed, layer)
    # One rounding of each image's sums is all the error there is: a variance is good to the last
    # bits of the mean square, however small it is beside that.
    square = float(np.square(x[np.isfinite(x)], dtype=np.float64).max(initial=0))
    for name, expected in reference.statistics(x).items():
        np.testing.assert_allclose(
            getattr(result.stats, name).numpy(),
            expected,
            rtol=1e-13,
            atol=max(1e-13, 2.0**-52 * square) if name == "variance" else 1e-13,
            err_msg=name,
        )


def assert_same(a: LayerSites, b: LayerSites, stats: bool = True) -> None:
    for kind in ("top", "bottom", "random", "pool"):
        for name, x, y in zip(
            getattr(a, kind)._fields, getattr(a, kind), getattr(b, kind), strict=True
        ):
            torch.testing.assert_close(x, y, rtol=0, atol=0, equal_nan=True, msg=f"{kind} {name}")
    if stats:
        assert a.images == b.images
        for name, x in vars(a.stats).items():
            torch.testing.assert_close(
                x, getattr(b.stats, name), rtol=0, atol=0, equal_nan=True, msg=name
            )


def ordinary(seed: int = 0, images: int = 17, channels: int = 4) -> Tensor:
    return torch.randn(images, channels, 3, 4, generator=torch.Generator().manual_seed(seed))


def tied(seed: int = 0, images: int = 17, channels: int = 4) -> Tensor:
    """Few distinct values, both zeros among them: most places are decided by the site."""
    values = torch.tensor([-1.0, -0.0, 0.0, 1.0])
    draw = torch.randint(
        0, 4, (images, channels, 3, 4), generator=torch.Generator().manual_seed(seed)
    )
    return values[draw]


def negative() -> Tensor:
    return -ordinary().abs() - 1


def broken() -> Tensor:
    maps = ordinary()
    maps[1, 0, 0, 0] = torch.nan
    maps[2, 1] = torch.inf
    maps[3, 2] = -torch.inf
    maps[:, 3] = torch.nan
    return maps


@pytest.mark.parametrize("sites", SITES)
@pytest.mark.parametrize("make", [ordinary, tied, negative, broken])
def test_equals_brute_force(make, sites: str) -> None:
    maps = make()
    ids = [3 * i + 1 for i in range(len(maps))]
    assert_brute_force(mined(maps, ids, config(sites)).result(), maps, ids, config(sites))


@pytest.mark.parametrize("sites", SITES)
@pytest.mark.parametrize("make", [ordinary, tied, negative, broken])
def test_without_compiled_loops_it_is_the_same(make, sites: str, monkeypatch) -> None:
    """The torch path, which other devices take; sums differ by roundings alone."""
    maps = make()
    ids = [2 * i for i in range(len(maps))]
    compiled = mined(maps, ids, config(sites)).result()
    monkeypatch.setattr("psi_engine.mining.miner.numba_reason", lambda device: "not now")
    plain = mined(maps, ids, config(sites))
    assert not plain._compiled
    assert_same(plain.result(), compiled, stats=False)
    assert_brute_force(plain.result(), maps, ids, config(sites))


@pytest.mark.parametrize("at_once", [1, 60, 1000])
def test_batches_enter_the_pool_alone_or_together(at_once: int, monkeypatch) -> None:
    maps, c = ordinary(), config(pool=150)
    expected = mined(maps, list(range(17)), c).result()
    monkeypatch.setattr("psi_engine.mining.miner.numba_reason", lambda device: "not now")
    monkeypatch.setattr("psi_engine.mining.miner._POOL_AT_ONCE", at_once)
    first, second = (Miner(LAYER, ActivationShape("map", 4, (3, 4)), c) for _ in range(2))
    ids = torch.arange(17)
    for part in (slice(0, 3), slice(3, 5), slice(8, 11)):
        first.update(maps[part], ids[part])
    second.update(maps[:3], ids[:3])
    second.load_state_dict(first.state_dict())  # what waits in the one is saved, in the other gone
    for part in (slice(5, 8), slice(11, 13), slice(13, 17)):
        second.update(maps[part], ids[part])
    assert_same(second.result(), expected, stats=False)


@pytest.mark.parametrize("sites", SITES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_floats_are_widened(sites: str, dtype: torch.dtype) -> None:
    maps = ordinary().to(dtype)
    ids = list(range(len(maps)))
    assert_brute_force(mined(maps, ids, config(sites)).result(), maps, ids, config(sites))


@pytest.mark.parametrize("sites", SITES)
@pytest.mark.parametrize("make", [ordinary, tied, broken])
def test_batches_and_order_change_nothing(make, sites: str) -> None:
    maps = make()
    ids = list(range(len(maps)))
    expected = mined(maps, ids, config(sites), step=len(ids)).result()
    for step in (1, 2, 7):
        assert_same(mined(maps, ids, config(sites), step).result(), expected)
    order = torch.randperm(len(ids), generator=torch.Generator().manual_seed(1))
    assert_same(mined(maps[order], order.tolist(), config(sites), 4).result(), expected)


def test_channels_last_memory_changes_nothing() -> None:
    maps = tied()
    ids = list(range(len(maps)))
    strided = maps.contiguous(memory_format=torch.channels_last)
    assert_same(mined(strided, ids, config()).result(), mined(maps, ids, config()).result())


@given(
    owners=st.lists(st.integers(0, 2), min_size=17, max_size=17),
    sites=st.sampled_from(SITES),
    make=st.sampled_from([ordinary, tied, broken]),
    order=st.permutations([0, 1, 2]),
)
@settings(max_examples=20, deadline=None)
def test_shards_merge_to_the_whole(owners, sites, make, order) -> None:
    maps, c = make(), config(sites)
    ids = list(range(len(maps)))
    shards = []
    for shard in range(3):
        mine = [i for i in ids if owners[i] == shard]
        shards.append(mined(maps[mine], mine, c))
    first, second, third = (shards[i] for i in order)
    second.merge(third)  # the right pair first: associativity
    first.merge(second)
    assert_same(first.result(), mined(maps, ids, c).result())


@pytest.mark.parametrize("sites", SITES)
@pytest.mark.parametrize("make", [ordinary, tied, broken])
def test_overlapping_shards_count_sites_once(make, sites: str) -> None:
    maps, c = make(), config(sites)
    ids = list(range(len(maps)))
    whole = mined(maps, ids, c)
    again = mined(maps, ids, c)
    again.merge(whole)
    assert_same(again.result(), whole.result(), stats=False)
    left, right = mined(maps[:11], ids[:11], c), mined(maps[5:], ids[5:], c)
    left.merge(right)
    assert_same(left.result(), whole.result(), stats=False)
    assert again.result().images == 2 * len(maps)  # as documented


@pytest.mark.parametrize("sites", SITES)
def test_an_image_met_twice_takes_one_place(sites: str) -> None:
    maps = ordinary()
    ids = list(range(len(maps)))
    miner = mined(maps, ids, config(sites))
    miner.update(maps[:3], torch.tensor(ids[:3]))
    assert_same(miner.result(), mined(maps, ids, config(sites)).result(), stats=False)


@pytest.mark.parametrize("sites", SITES)
def test_saved_and_continued_is_uninterrupted(sites: str) -> None:
    maps, c = broken(), config(sites)
    ids = list(range(len(maps)))
    state = mined(maps[:8], ids[:8], c).state_dict()
    later = mined(maps[:0], [], c)
    later.load_state_dict(state)
    later.update(maps[8:], torch.tensor(ids[8:]))
    assert_same(later.result(), mined(maps, ids, c).result())
    assert all(x.is_contiguous() and x.device.type == "cpu" for x in state.values())


def test_a_saved_state_is_not_changed_by_going_on() -> None:
    maps = ordinary()
    miner = mined(maps[:8], list(range(8)), config())
    state = miner.state_dict()
    before = {name: x.clone() for name, x in state.items()}
    miner.update(maps[8:], torch.arange(8, 17))
    for name, x in before.items():
        torch.testing.assert_close(state[name], x, rtol=0, atol=0, equal_nan=True)


def test_a_subset_of_channels_gets_the_sites_of_a_full_run() -> None:
    maps, chosen = ordinary(channels=6), torch.tensor([4, 1])
    ids = list(range(len(maps)))
    full = mined(maps, ids, config()).result()
    part = mined(maps, ids, config(), channels=chosen).result()
    assert part.channels.tolist() == [4, 1]
    for kind in ("top", "bottom", "random"):
        for x, y in zip(getattr(part, kind), getattr(full, kind), strict=True):
            assert torch.equal(x, y[chosen])
    for name, x in vars(part.stats).items():
        assert torch.equal(x, getattr(full.stats, name)[chosen]), name


def test_fewer_sites_than_asked_leave_empty_slots() -> None:
    maps = ordinary(images=3)
    result = mined(maps, [0, 1, 2], config()).result()
    assert (result.image_ids[:, 3:] == -1).all()
    assert (result.u[:, 3:] == -1).all()
    assert result.values[:, 3:].isnan().all()
    assert not result.values[:, :3].isnan().any()
    every_site = mined(maps, [0, 1, 2], config("all", pool=1000)).result()
    assert not every_site.values.isnan().any()
    assert len(every_site.pool.image_ids) == 3 * 12  # all there are


def test_a_channel_without_a_finite_site_is_empty_and_dead() -> None:
    result = mined(broken(), list(range(17)), config()).result()
    assert (result.image_ids[3] == -1).all()
    assert (result.random.image_ids[3] == -1).all()
    assert result.stats.nonfinite.tolist() == [1, 12, 12, 17 * 12]
    assert dead_channels(result.stats).tolist() == [False, False, False, True]


def test_constant_channels_are_dead() -> None:
    maps = ordinary()
    maps[:, 1] = 0.0
    maps[:, 2] = -2.5
    maps[::2, 0] = -0.0  # both zeros are one value, but others move
    result = mined(maps, list(range(17)), config()).result()
    assert dead_channels(result.stats).tolist() == [False, True, True, False]
    assert result.stats.sparsity[1] == 1.0


def test_nothing_mined_is_empty() -> None:
    result = mined(ordinary()[:0], [], config()).result()
    assert (result.image_ids == -1).all()
    assert len(result.pool.image_ids) == 0
    assert dead_channels(result.stats).all()


def test_sets_that_are_not_wanted_cost_nothing() -> None:
    c = config(bottom_k=0, reservoir=0, pool=0)
    maps = ordinary()
    result = mined(maps, list(range(17)), c).result()
    assert result.bottom.values.shape == (4, 0)
    assert result.random.values.shape == (4, 0)
    assert len(result.pool.image_ids) == 0
    assert_brute_force(result, maps, list(range(17)), c)


def test_sites_need_more_than_32_bits() -> None:
    maps = tied()
    ids = [2**40 + i for i in range(len(maps))]
    for sites in SITES:
        assert_brute_force(mined(maps, ids, config(sites)).result(), maps, ids, config(sites))


def test_random_sites_are_uniform() -> None:
    """Chi-square over the 12 sites of the grid, 4000 draws; the 1e-4 quantile of 11 degrees."""
    maps = torch.zeros(1000, 4, 3, 4)
    c = config(reservoir=1000, pool=1000, top_k=4, bottom_k=0)
    result = mined(maps, list(range(1000)), c, step=100).result()
    for u, v in ((result.random.u, result.random.v), (result.pool.u, result.pool.v)):
        counts = torch.bincount((u * 4 + v).flatten().long(), minlength=12).double()
        expected = counts.sum() / 12
        assert ((counts - expected) ** 2 / expected).sum() < 37.4
    few = mined(maps, list(range(1000)), config(reservoir=100), step=100).result()
    late = (few.random.image_ids >= 500).double().mean(1)
    assert ((late - 0.5).abs() < 0.2).all()  # 4 standard errors


@pytest.mark.parametrize(
    ("maps", "message"),
    [
        (torch.zeros(2, 5, 3, 4), "do not fit the layer"),
        (torch.zeros(2, 4, 3, 5), "same size"),
        (torch.zeros(3, 4, 3, 4), "one image id per row"),
        (torch.zeros(2, 4, 3, 4, dtype=torch.int64), "int64"),
    ],
)
def test_maps_of_another_layer_are_refused(maps: Tensor, message: str) -> None:
    miner = Miner(LAYER, ActivationShape("map", 4, (3, 4)), config())
    with pytest.raises(InputError, match=message):
        miner.update(maps, torch.arange(2))


@pytest.mark.parametrize("channels", [[4], [-1], [1, 1], [], [[0]]])
def test_channels_that_are_not_there_are_refused(channels: list) -> None:
    with pytest.raises(InputError, match="distinct indices from 0 to 3"):
        Miner(LAYER, ActivationShape("map", 4, (3, 4)), config(), torch.tensor(channels))


def test_other_work_is_not_merged_or_continued() -> None:
    shape = ActivationShape("map", 4, (3, 4))
    miner = Miner(LAYER, shape, config())
    for other in (
        Miner("block.2", shape, config()),
        Miner(LAYER, shape, config(seed=4)),
        Miner(LAYER, shape, config("all")),
        Miner(LAYER, shape, config(), torch.tensor([0, 1])),
    ):
        with pytest.raises(InputError, match="cannot be merged"):
            miner.merge(other)
    with pytest.raises(InputError, match="does not fit: top.keys"):
        miner.load_state_dict(Miner(LAYER, shape, config(top_k=7)).state_dict())
    with pytest.raises(InputError, match="got nothing"):
        miner.load_state_dict({})
    state = Miner(LAYER, shape, config(), torch.tensor([0, 1, 2, 3])).state_dict()
    state["channels"] = torch.tensor([3, 1, 2, 0])
    with pytest.raises(InputError, match="other channels"):
        miner.load_state_dict(state)
    for other in (Miner("other", shape, config()), Miner(LAYER, shape, config(seed=4))):
        with pytest.raises(InputError, match="made with other settings"):
            miner.load_state_dict(other.state_dict())
    with pytest.raises(InputError, match="pool is too large"):
        Miner(LAYER, shape, config(pool=1 << 30))
