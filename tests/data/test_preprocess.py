"""Views against PIL and torchvision."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms._presets import ImageClassification

from psi_engine.data import Preprocess, open_source
from psi_engine.data.preprocess import decode
from psi_engine.errors import InputError
from tests.data.pictures import SMALL, picture


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize(
    ("size", "mode", "resize", "side"),
    [
        ((64, 64), "RGB", 224, 224),
        ((64, 64), "RGB", 232, 224),
        ((97, 41), "RGB", 33, 32),
        ((41, 97), "RGB", 33, 32),
        ((300, 200), "L", 51, 50),
        ((3, 50), "RGB", 7, 7),
        ((40, 30), "RGBA", 20, 15),
        ((32, 32), "CMYK", 32, 32),
        ((31, 48), "P", 31, 30),
    ],
)
def test_views_and_normalisation_equal_torchvisions(
    size: tuple[int, int], mode: str, resize: int, side: int, interpolation: Any
) -> None:
    image = picture(0, size, mode)
    ours = Preprocess(image_size=side, resize=resize, interpolation=interpolation)
    theirs = ImageClassification(
        crop_size=side, resize_size=resize, interpolation=InterpolationMode(interpolation)
    )
    view = ours.view(image)
    assert view.dtype == torch.uint8
    assert view.is_contiguous()
    assert torch.equal(ours.normalise(view[None])[0], theirs(image.convert("RGB")))


def test_view_is_what_pil_gives() -> None:
    image = picture(1, (30, 20))
    # Shorter side 20 → 12, longer 12 · 30 / 20 = 18; a crop of 9 starts at 4 (4.5) and 2 (1.5).
    expected = image.resize((18, 12), Image.Resampling.BICUBIC).crop((4, 2, 13, 11))
    view = Preprocess(image_size=9, resize=12, interpolation="bicubic").view(image)
    assert np.array_equal(view.permute(1, 2, 0).numpy(), np.asarray(expected))


def test_squash_gives_up_the_aspect_ratio() -> None:
    image = picture(2, (30, 20))
    view = Preprocess(image_size=12, resize=12, squash=True).view(image)
    expected = image.resize((12, 12), Image.Resampling.BILINEAR)
    assert np.array_equal(view.permute(1, 2, 0).numpy(), np.asarray(expected))


def test_normalise_takes_floats_in_unit_range_and_leaves_its_input() -> None:
    views = torch.arange(2 * 3 * 4 * 4, dtype=torch.uint8).reshape(2, 3, 4, 4)
    floats = views.float().div(255)
    before = floats.clone()
    ours = Preprocess(image_size=4, resize=4, mean=(0.1, 0.2, 0.3), std=(0.5, 1.0, 2.0))
    assert torch.equal(ours.normalise(views), ours.normalise(floats))
    assert torch.equal(floats, before)
    expected = v2.functional.normalize(before, [0.1, 0.2, 0.3], [0.5, 1.0, 2.0])
    assert torch.equal(ours.normalise(floats), expected)


def test_transparent_palette_images_decode_without_a_warning(tmp_path: Path) -> None:
    image = picture(3).quantize(8)
    image.save(tmp_path / "a.png", transparency=bytes([0, 128, 255]))
    view = open_source(tmp_path).view(0, SMALL)
    with Image.open(tmp_path / "a.png") as stored:
        expected = SMALL.view(stored.convert("RGBA").convert("RGB"))
    assert torch.equal(view, expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_size": 0, "resize": 8}, "image_size is too small; got 0"),
        ({"image_size": 9, "resize": 8}, "resize is smaller than image_size; got 8 < 9"),
        ({"image_size": 8, "resize": 8, "interpolation": "nearest"}, "unknown interpolation"),
        ({"image_size": 8, "resize": 8, "std": (0.0, 1.0, 1.0)}, "bad normalisation"),
    ],
)
def test_bad_preprocess(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Preprocess(**options)


@pytest.mark.parametrize("order", ["<u2", ">u2"])
def test_sixteen_bit_grey_keeps_its_upper_bits(order: str) -> None:
    values = np.arange(0, 65536, 257, dtype=np.uint16).reshape(16, 16)
    stream = io.BytesIO()
    mode = "I;16" if order == "<u2" else "I;16B"
    Image.frombytes(mode, (16, 16), values.astype(order).tobytes()).save(stream, "TIFF")
    found = np.asarray(decode(stream.getvalue()))
    assert np.array_equal(found, np.repeat((values >> 8).astype(np.uint8)[:, :, None], 3, 2))
