"""Mining on a GPU: what a miner keeps there, and what it goes on from."""

from __future__ import annotations

import pytest
import torch

from psi_engine.config import MineConfig
from psi_engine.mining.miner import Miner
from psi_engine.types import ActivationShape, LayerSites

pytestmark = pytest.mark.gpu

SHAPE = ActivationShape("map", 40, (7, 6))


def config(sites: str) -> MineConfig:
    return MineConfig(top_k=7, bottom_k=5, reservoir=6, pool=50, sites=sites)


def batch(start: int, dtype: torch.dtype, channels_last: bool) -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.randn(9, 40, 7, 6, generator=torch.Generator().manual_seed(start)).mul(4).round()
    x[0, 3] = torch.nan
    x = x.to(dtype)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    return x.contiguous(memory_format=layout), torch.arange(start, start + 9)


def mined(device: str, sites: str, dtype: torch.dtype, channels_last: bool, order) -> LayerSites:
    miner = Miner("layer", SHAPE, config(sites), device=device)
    for start in order:
        maps, ids = batch(start, dtype, channels_last)
        miner.update(maps.to(device), ids)
    return miner.result()


def check(got: LayerSites, want: LayerSites) -> None:
    for name in ("top", "bottom", "random", "pool"):
        for a, b in zip(getattr(got, name), getattr(want, name), strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)
    for name in ("minimum", "maximum", "sparsity", "nonfinite", "count"):
        torch.testing.assert_close(
            getattr(got.stats, name), getattr(want.stats, name), rtol=0, atol=0, equal_nan=True
        )
    torch.testing.assert_close(got.stats.mean, want.stats.mean, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(got.stats.variance, want.stats.variance, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("sites", ["per-image", "all"])
def test_the_gpu_keeps_what_the_cpu_keeps(sites: str, channels_last: bool, dtype) -> None:
    order = (0, 9, 18, 27)
    want = mined("cpu", sites, dtype, channels_last, order)
    check(mined("cuda", sites, dtype, channels_last, order), want)


@pytest.mark.parametrize("sites", ["per-image", "all"])
def test_batches_out_of_order_change_nothing(sites: str) -> None:
    want = mined("cpu", sites, torch.float32, True, (0, 9, 18, 27))
    check(mined("cuda", sites, torch.float32, True, (18, 0, 27, 9)), want)


def test_image_ids_may_be_on_either_device() -> None:
    """Of ids on the GPU it is not asked how great they are, so none after them counts as newer."""
    miner = Miner("layer", SHAPE, config("all"), device="cuda")
    for start, where in ((18, "cuda"), (0, "cpu"), (27, "cuda"), (9, "cpu")):
        maps, ids = batch(start, torch.float32, True)
        miner.update(maps.cuda(), ids.to(where))
    check(miner.result(), mined("cpu", "all", torch.float32, True, (0, 9, 18, 27)))


def test_a_saved_state_goes_on_on_the_gpu() -> None:
    first = Miner("layer", SHAPE, config("all"), device="cuda")
    for start in (0, 9):
        maps, ids = batch(start, torch.float32, True)
        first.update(maps.cuda(), ids)
    second = Miner("layer", SHAPE, config("all"), device="cuda")
    second.load_state_dict(first.state_dict())
    for start in (18, 27):
        maps, ids = batch(start, torch.float32, True)
        second.update(maps.cuda(), ids)
    check(second.result(), mined("cpu", "all", torch.float32, True, (0, 9, 18, 27)))
