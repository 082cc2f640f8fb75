"""Crops against Pillow: the pixels exactly, the resize byte for byte."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from psi_engine.errors import InputError
from psi_engine.ops.crops import crop, crop_and_resize

FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


def noise(batch: int = 3, side: int = 40) -> Tensor:
    """The hardest images for a resize: extremes next to each other, so that bicubic overshoots."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(0, 256, (batch, 3, side, side), generator=generator, dtype=torch.uint8)
    x[0] = (x[0] > 127).to(torch.uint8) * 255
    return x


def pillow(view: Tensor, box: list[int], size: int, interpolation: str) -> Tensor:
    image = Image.fromarray(view.permute(1, 2, 0).numpy()).crop(box)
    if image.width != image.height:  # Pillow versions differ in which axis goes first
        image = image.resize((size, image.height), FILTERS[interpolation])
    image = image.resize((size, size), FILTERS[interpolation])
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def test_crops_are_the_pixels() -> None:
    views = noise()
    boxes = torch.tensor([[0, 0, 7, 5], [33, 35, 40, 40], [11, 2, 18, 7]])
    which = torch.tensor([2, 0, 2])
    for got, b, (x0, y0, x1, y1) in zip(
        crop(views, which, boxes), which, boxes.tolist(), strict=True
    ):
        assert torch.equal(got, views[b, :, y0:y1, x0:x1])


@given(
    data=st.data(),
    size=st.integers(1, 60),
    interpolation=st.sampled_from(["bilinear", "bicubic"]),
)
@settings(max_examples=40, deadline=None)
def test_resized_crops_equal_pillow(data, size: int, interpolation) -> None:
    views = noise()
    boxes, which = [], []
    for _ in range(data.draw(st.integers(1, 4))):
        width, height = data.draw(st.integers(1, 40)), data.draw(st.integers(1, 40))
        x0, y0 = data.draw(st.integers(0, 40 - width)), data.draw(st.integers(0, 40 - height))
        boxes.append([x0, y0, x0 + width, y0 + height])
        which.append(data.draw(st.integers(0, 2)))
    got = crop_and_resize(views, torch.tensor(which), torch.tensor(boxes), size, interpolation)
    assert got.dtype == torch.float32
    for x, b, box in zip(got, which, boxes, strict=True):
        expected = pillow(views[b], box, size, interpolation)
        assert torch.equal(x, expected.to(torch.float32) / 255)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_real_sizes_equal_pillow(interpolation) -> None:
    views = noise(2, 224)
    boxes = torch.tensor([[10, 20, 98, 108], [70, 70, 224, 224], [0, 0, 224, 224]])
    for size in (224, 64):
        got = crop_and_resize(views, torch.tensor([0, 1, 0]), boxes, size, interpolation)
        for x, b, box in zip(got, (0, 1, 0), boxes.tolist(), strict=True):
            expected = pillow(views[b], box, size, interpolation)
            assert torch.equal(x, expected.to(torch.float32) / 255)


def test_grouping_and_order_change_nothing() -> None:
    views = noise()
    boxes = torch.tensor([[0, 0, 10, 10], [5, 5, 25, 25], [3, 4, 13, 14], [0, 0, 40, 40]])
    which = torch.tensor([0, 1, 2, 0])
    together = crop_and_resize(views, which, boxes, 16)
    for i in range(4):
        alone = crop_and_resize(views, which[i : i + 1], boxes[i : i + 1], 16)
        assert torch.equal(alone[0], together[i])


def test_a_box_of_the_final_size_is_only_cut() -> None:
    views = noise()
    got = crop_and_resize(views, torch.tensor([1]), torch.tensor([[3, 4, 19, 20]]), 16)
    assert torch.equal(got[0] * 255, views[1, :, 4:20, 3:19].float())


def test_views_are_not_modified() -> None:
    views = noise()
    before = views.clone()
    crop_and_resize(views, torch.tensor([1]), torch.tensor([[3, 4, 19, 20]]), 8)
    assert torch.equal(views, before)


def test_no_boxes_no_crops() -> None:
    none = torch.empty(0, dtype=torch.int64)
    assert crop_and_resize(noise(), none, none.view(0, 4), 8).shape == (0, 3, 8, 8)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"views": noise().float()}, "uint8"),
        ({"views": noise()[:, :1]}, "uint8"),
        ({"xyxy": torch.tensor([[0, 0, 41, 8]])}, "leaves its image"),
        ({"xyxy": torch.tensor([[-1, 0, 4, 8]])}, "leaves its image"),
        ({"xyxy": torch.tensor([[4, 0, 4, 8]])}, "leaves its image"),
        ({"which": torch.tensor([3])}, "of one of 3 views"),
        ({"which": torch.tensor([0, 1])}, "boxes do not fit"),
        ({"size": 0}, "size 0"),
        ({"interpolation": "nearest"}, "nearest"),
    ],
)
def test_bad_input_is_refused(changes: dict, message: str) -> None:
    arguments = {
        "views": noise(),
        "which": torch.tensor([0]),
        "xyxy": torch.tensor([[0, 0, 8, 8]]),
        "size": 8,
        "interpolation": "bicubic",
    } | changes
    with pytest.raises(InputError, match=message):
        crop_and_resize(**arguments)
