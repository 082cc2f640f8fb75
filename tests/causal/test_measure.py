"""Edited images through a network: what must not change does not, exactly."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from psi_engine.causal.measure import BLANK, Edits, activations
from psi_engine.causal.paste import blend_weights
from psi_engine.data import Preprocess
from psi_engine.types import ActivationShape

SIZE, SIDE = 32, 9
PREPROCESS = Preprocess(SIZE, SIZE, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.25))
SHAPE = ActivationShape("map", 5, (8, 8))
# Two 3 × 3 convolutions of stride 2: a unit sees 7 × 7 pixels centred on 4·u.
REACH = 3
WEIGHTS = torch.stack([torch.zeros(SIDE, SIDE, dtype=torch.int32), blend_weights(SIDE, "hard"),
                       blend_weights(SIDE, "feathered")])  # fmt: skip


@pytest.fixture(scope="module")
def net() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return nn.Sequential(
            nn.Conv2d(3, 4, 3, 2, 1), nn.ReLU(), nn.BatchNorm2d(4), nn.Conv2d(4, 5, 3, 2, 1),
            nn.Flatten(), nn.Linear(320, 2),
        )  # fmt: skip


@pytest.fixture(scope="module")
def views() -> Tensor:
    rng = np.random.default_rng(0)
    return torch.from_numpy(rng.integers(0, 256, (6, 3, SIZE, SIZE), dtype=np.uint8))


def random_edits(count: int, seed: int = 0) -> Edits:
    rng = np.random.default_rng(seed)

    def ints(low: int, high: int, *shape: int) -> Tensor:
        return torch.from_numpy(rng.integers(low, high, shape))

    target, source = (ints(0, SIZE - SIDE + 1, count, 2) for _ in range(2))
    return Edits(
        host=ints(0, 6, count),
        donor=ints(-1, 6, count),
        target=torch.cat([target, target + SIDE], 1),
        source=torch.cat([source, source + SIDE], 1),
        weights=ints(0, 3, count),
        channel=ints(0, 5, count),
        u=ints(0, 8, count),
        v=ints(0, 8, count),
    )


def measure(net: nn.Module, views: Tensor, edits: Edits) -> Tensor:
    return activations(
        net, "3", SHAPE, PREPROCESS, views, edits, WEIGHTS, device=torch.device("cpu")
    )


def untouched(edits: Edits) -> Edits:
    return dataclasses.replace(edits, weights=torch.zeros_like(edits.weights))


def test_activations_are_those_of_images_edited_by_hand(net: nn.Module, views: Tensor) -> None:
    edits = random_edits(40)
    found = measure(net, views, edits)
    for row in range(40):
        image = views[edits.host[row]].clone().double()
        x0, y0, x1, y1 = edits.target[row].tolist()
        if edits.donor[row] == BLANK:
            new = torch.tensor([round(255 * m) for m in PREPROCESS.mean])[:, None, None].double()
        else:
            a0, b0, a1, b1 = edits.source[row].tolist()
            new = views[edits.donor[row], :, b0:b1, a0:a1].double()
        share = WEIGHTS[edits.weights[row]].double() / 256
        old = image[:, y0:y1, x0:x1]
        image[:, y0:y1, x0:x1] = torch.floor(share * new + (1 - share) * old + 0.5)
        with torch.no_grad():
            pixels = PREPROCESS.normalise(image.to(torch.uint8)[None])
            maps = net[3](nn.functional.batch_norm(
                net[0](pixels).relu(), torch.zeros(4), torch.ones(4)
            ))  # fmt: skip
        expected = maps[0, edits.channel[row], edits.u[row], edits.v[row]]
        assert float(found[row]) == pytest.approx(float(expected), abs=2e-6)


def test_swapping_a_patch_with_itself_changes_nothing(net: nn.Module, views: Tensor) -> None:
    edits = random_edits(40, seed=1)
    edits = dataclasses.replace(
        edits, donor=edits.host, source=edits.target, weights=edits.weights.clamp(min=1)
    )
    assert torch.equal(measure(net, views, edits), measure(net, views, untouched(edits)))


def test_swaps_outside_the_theoretical_field_change_nothing(net: nn.Module, views: Tensor) -> None:
    edits = random_edits(300, seed=2)
    edits = dataclasses.replace(edits, weights=torch.ones_like(edits.weights))
    seen = [
        (4 * x - REACH < high) & (low < 4 * x + REACH + 1)
        for x, low, high in (
            (edits.v, edits.target[:, 0], edits.target[:, 2]),
            (edits.u, edits.target[:, 1], edits.target[:, 3]),
        )
    ]
    inside = seen[0] & seen[1]
    changed = measure(net, views, edits) != measure(net, views, untouched(edits))
    assert 20 < int(inside.sum()) < 280
    assert not changed[~inside].any()
    assert changed[inside].double().mean() > 0.8  # a corner behind a ReLU may not tell


def test_an_activation_depends_on_no_other_edit(net: nn.Module, views: Tensor) -> None:
    edits = random_edits(35, seed=4)
    whole = measure(net, views, edits)
    order = torch.randperm(35, generator=torch.Generator().manual_seed(0))
    turned = Edits(*(x[order] for x in vars(edits).values()))
    assert torch.equal(measure(net, views, turned), whole[order])
    for row in range(0, 35, 7):
        alone = Edits(*(x[row : row + 1] for x in vars(edits).values()))
        assert torch.equal(measure(net, views, alone), whole[row : row + 1])


def test_modes_and_hooks_are_put_back(net: nn.Module, views: Tensor) -> None:
    net.train()
    told: list[int] = []
    activations(
        net, "3", SHAPE, PREPROCESS, views, random_edits(20), WEIGHTS,
        device=torch.device("cpu"), progress=told.append,
    )  # fmt: skip
    assert net.training
    assert net[2].training
    assert not any(part._forward_hooks for part in net.modules())
    assert told == [16, 20]
    net.eval()
