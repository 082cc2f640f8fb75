"""The resize in whole numbers against PIL."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from psi_engine.data import Preprocess, open_source
from psi_engine.data import resample as resample_module
from psi_engine.data.preprocess import Interpolation, to_tensor
from psi_engine.data.processes import Views
from psi_engine.data.resample import can_resample, resample
from tests.data.pictures import SMALL, picture, save


def check(size: tuple[int, int], preprocess: Preprocess, seed: int = 0) -> None:
    if not can_resample(*size, preprocess):  # both orders of the passes agree by chance
        assert preprocess.image_size < 16 or min(size) < 4
        return
    images = [picture(seed + i, size) for i in range(2)]
    found = resample(torch.stack([to_tensor(image) for image in images]), preprocess)
    assert torch.equal(found, torch.stack([preprocess.view(image) for image in images]))


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", [(64, 64), (64, 48), (224, 224), (256, 256), (500, 375), (1, 3)])
@pytest.mark.parametrize("resize", [224, 256])
def test_bits_of_pil(size: tuple[int, int], resize: int, interpolation: Interpolation) -> None:
    check(size, Preprocess(224, resize, interpolation))


@settings(deadline=None, max_examples=60)
@given(
    st.tuples(st.integers(1, 90), st.integers(1, 90)),
    st.integers(1, 40),
    st.integers(0, 30),
    st.sampled_from(["bilinear", "bicubic"]),
    st.booleans(),
    st.integers(0, 1000),
)
def test_bits_of_pil_at_any_size(
    size: tuple[int, int],
    side: int,
    more: int,
    interpolation: Interpolation,
    squash: bool,
    seed: int,
) -> None:
    check(size, Preprocess(side, side + more, interpolation, squash=squash), seed)


def test_another_arithmetic_of_pil_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    preprocess = Preprocess(20, 22)
    assert can_resample(31, 17, preprocess)
    resample_module._rows_first.cache_clear()
    monkeypatch.setattr(resample_module, "_BITS", 12)
    resample_module._taps.cache_clear()
    assert not can_resample(31, 17, preprocess)
    resample_module._rows_first.cache_clear()
    resample_module._taps.cache_clear()


def test_images_of_one_size_are_left_to_the_reader(tmp_path: Path) -> None:
    for seed in range(10):
        save(tmp_path / f"{seed}.png", seed)
    source = open_source(tmp_path)
    large = Preprocess(image_size=16, resize=18)
    ids = [0, 2, 3, 4, 5, 6, 7, 8, 9]
    read = Views(source, large, whole=True).read(ids)
    assert read.whole
    assert read.views is not None
    assert read.views.shape == (9, 3, 10, 12)
    expected = torch.stack([large.view(picture(seed)) for seed in ids])
    assert torch.equal(resample(read.views, large), expected)
    picture(1, (12, 11)).save(tmp_path / "1.png")  # of another size
    for preprocess, some in ((large, [1, *ids]), (SMALL, ids), (large, ids[:3])):
        read = Views(source, preprocess, whole=True).read(some)
        assert not read.whole
        assert read.views is not None
        expected = torch.stack([source.view(i, preprocess) for i in some])
        assert torch.equal(read.views, expected)
