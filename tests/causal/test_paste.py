"""Pasting squares into pictures."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from psi_engine.causal.paste import WHOLE, blend_weights, paste
from psi_engine.ops.crops import crop


def pictures(count: int = 3, seed: int = 0) -> Tensor:
    rng = np.random.default_rng(seed)
    return torch.from_numpy(rng.integers(0, 256, (count, 3, 20, 24), dtype=np.uint8))


BOXES = torch.tensor([[0, 0, 7, 7], [17, 13, 24, 20], [5, 6, 12, 13]])


def test_a_hard_paste_is_a_copy_of_the_square_and_nothing_else() -> None:
    views, squares = pictures(), pictures(seed=1)[:, :, :7, :7]
    before = views.clone()
    out = paste(views, squares, BOXES, blend_weights(7, "hard").expand(3, 7, 7))
    for row, (x0, y0, x1, y1) in enumerate(BOXES.tolist()):
        expected = before[row].clone()
        expected[:, y0:y1, x0:x1] = squares[row]
        assert torch.equal(out[row], expected)
    assert torch.equal(views, before)


@pytest.mark.parametrize("blend", ["hard", "feathered"])
def test_a_square_swapped_with_itself_changes_nothing(blend: str) -> None:
    views = pictures()
    squares = crop(views, torch.arange(3), BOXES)
    assert torch.equal(paste(views, squares, BOXES, blend_weights(7, blend).expand(3, 7, 7)), views)


def test_every_level_blended_with_itself_stays() -> None:
    level = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(1, 3, 16, 16)
    for weight in range(WHOLE + 1):
        weights = torch.full((1, 16, 16), weight, dtype=torch.int32)
        assert torch.equal(paste(level, level, torch.tensor([[0, 0, 16, 16]]), weights), level)


def test_zero_weights_change_nothing() -> None:
    views = pictures()
    zeros = torch.zeros(3, 7, 7, dtype=torch.int32)
    assert torch.equal(paste(views, 255 - views[:, :, :7, :7], BOXES, zeros), views)


def test_a_feathered_paste_is_the_rounded_mean() -> None:
    views, squares = pictures(1), pictures(1, seed=3)[:, :, :7, :7]
    weights = blend_weights(7, "feathered")
    out = paste(views, squares, BOXES[2:], weights[None])[0, :, 6:13, 5:12].numpy()
    old, new, share = (
        x.numpy().astype(float) for x in (views[0, :, 6:13, 5:12], squares[0], weights)
    )
    assert (out == np.floor((share * new + (WHOLE - share) * old) / WHOLE + 0.5)).all()


@pytest.mark.parametrize("side", [1, 2, 5, 16, 21, 74])
def test_feathered_weights_rise_over_an_eighth_and_are_flat_inside(side: int) -> None:
    weights = blend_weights(side, "feathered").numpy()
    width = max(1, side // 8)
    for y in range(side):
        for x in range(side):
            share = 1.0
            for place in (y, x):
                share *= min(1.0, (min(place, side - 1 - place) + 1) / (width + 1))
            assert weights[y, x] == int(share * WHOLE + 0.5 + 1e-9)
    assert (blend_weights(side, "hard") == WHOLE).all()
    if side > 2:
        assert weights.max() == WHOLE
