from __future__ import annotations

from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from psi_engine.encoders import load_encoder
from tests.encoders.tiny import (
    OPENAI_MEAN,
    OPENAI_STD,
    assert_rows,
    clip_model,
    clip_rows,
    clip_state,
    images,
)


@pytest.mark.parametrize("ending", [".pt", ".safetensors"])
@pytest.mark.parametrize("half", [False, True])
def test_clip_from_a_file_equals_open_clip(tmp_path: Path, ending: str, half: bool) -> None:
    file = tmp_path / f"weights{ending}"
    state = {k: v.half() if half else v for k, v in clip_state().items()}
    save_file(state, file) if ending == ".safetensors" else torch.save(state, file)
    encoder = load_encoder("open_clip:tiny", str(file))
    x = images(3)
    rows = encoder.encode_images(x)
    assert rows.dtype == torch.float32
    expected = clip_rows(x, quick=False, mean=OPENAI_MEAN, std=OPENAI_STD)
    torch.testing.assert_close(rows, expected, rtol=0, atol=2e-3 if half else 1e-6)


def test_texts_equal_open_clip(clip_file: str) -> None:
    texts = ["a red fox", "An OWL, seen at night", "word " * 200]
    with torch.no_grad():
        tokens = open_clip.get_tokenizer("tiny")(texts)
        expected = clip_model().encode_text(tokens, normalize=True)
    rows = load_encoder("open_clip:tiny", clip_file).encode_texts(texts)
    assert_rows(rows, expected)


def test_clip_declares_what_it_is(clip_file: str) -> None:
    encoder = load_encoder("open_clip:tiny", clip_file)
    assert (encoder.name, encoder.dim, encoder.image_size) == ("open_clip:tiny", 16, 32)
    assert (encoder.interpolation, encoder.text) == ("bicubic", "encoder")
    assert encoder.concepts is None
    assert encoder.concept_embeddings is None
    assert encoder.to("cpu") is encoder


def test_pixels_are_normalised_as_open_clip_does(clip_file: str) -> None:
    encoder = load_encoder("open_clip:tiny", clip_file)
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    config = open_clip.transform.PreprocessCfg(size=32)
    transform = open_clip.transform.image_transform_v2(config, is_train=False)
    pixel_rows = transform(Image.fromarray(pixels))[None]
    with torch.no_grad():
        expected = clip_model().encode_image(pixel_rows, normalize=True)
    view = torch.from_numpy(pixels).permute(2, 0, 1)[None] / 255
    assert_rows(encoder.encode_images(view), expected)
