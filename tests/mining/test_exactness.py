"""Equality with a full sort: every kind of data, batch size, worker count and merge of shards."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from psi_engine.mining import Miner, mine
from psi_engine.types import LayerSites
from tests.mining.test_miner import assert_brute_force, assert_same
from tests.mining.test_stream import config

IMAGES, CHANNELS, SIDE = 37, 3, 4


def data(kind: str) -> Tensor:
    x = torch.randn(
        IMAGES, CHANNELS, SIDE, SIDE, generator=torch.Generator().manual_seed(len(kind))
    )
    if kind == "tied":
        x = x.round()  # both zeros among the values
    elif kind == "negative":
        x = -x.abs() - 1
    elif kind == "constant":
        x[:] = torch.tensor([0.0, -3.0, 7.0])[:, None, None]
    elif kind == "narrow":
        x = 1000 + x * 1e-4  # a few neighbouring floats; one value in 16 bits
        assert len(x.unique()) < 20
        assert len(x.bfloat16().unique()) == 1
    elif kind == "laced":
        x[::5, 0, 1, 1] = torch.nan
        x[3:9, 1] = torch.inf
        x[20:, 2] = -torch.inf
        x[30] = torch.nan
    return x


class Items(Dataset):
    """At the top of a module, so that worker processes can have it."""

    def __init__(self, kind: str) -> None:
        self.x = data(kind)

    def __len__(self) -> int:
        return IMAGES

    def __getitem__(self, index: int) -> Tensor:
        return self.x[index]


class Bare(nn.Module):
    """Activations are the data."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


KINDS = ("random", "tied", "negative", "constant", "narrow", "laced")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sites", ["per-image", "all"])
def test_equals_a_full_sort(kind: str, sites: str) -> None:
    for batch_size in (1, 16, 23, 64):
        c = config(sites=sites, batch_size=batch_size)
        found = mine(Bare(), Items(kind), ["layer"], c)["layer"]
        assert_brute_force(found, data(kind), list(range(IMAGES)), c, "layer")


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_equals_a_full_sort_with_workers(workers: int) -> None:
    for kind, sites in product(KINDS, ("per-image", "all")):
        c = config(sites=sites, batch_size=5)
        found = mine(Bare(), Items(kind), ["layer"], c, workers=workers)["layer"]
        assert_brute_force(found, data(kind), list(range(IMAGES)), c, "layer")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sites", ["per-image", "all"])
@pytest.mark.parametrize("shards", [2, 4])
def test_shards_equal_a_full_sort_merged_in_any_order(kind: str, sites: str, shards: int) -> None:
    c, parts = config(sites=sites), []

    def hand_over(miners: dict[str, Miner]) -> dict[str, LayerSites]:
        parts.append(miners["layer"])
        return {}

    for indices in torch.arange(IMAGES).tensor_split(shards):
        mine(Bare(), Items(kind), ["layer"], c, indices=indices, finish=hand_over)
    whole = parts[-1]  # last first
    for part in parts[:-1]:
        whole.merge(part)
    assert_brute_force(whole.result(), data(kind), list(range(IMAGES)), c, "layer")
    assert_same(whole.result(), mine(Bare(), Items(kind), ["layer"], c)["layer"])
