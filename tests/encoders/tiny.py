"""The tiny CLIP of the encoder tests, and its rows by open_clip alone."""

from __future__ import annotations

import functools
from typing import Any

import open_clip
import pytest
import torch

CONFIG = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "patch_size": 8, "head_width": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
}
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.3, 0.25)
OPENAI_MEAN = (0.48145466, 0.4578275, 0.40821073)
OPENAI_STD = (0.26862954, 0.26130258, 0.27577711)
CLOSED = "http://127.0.0.1:9"
"""Nothing listens on the discard port."""


@functools.cache
def clip_state(seed: int = 0) -> dict[str, torch.Tensor]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return dict(open_clip.CLIP(**CONFIG).state_dict())


def clip_model(*, quick: bool = False) -> Any:
    model = open_clip.CLIP(**CONFIG, quick_gelu=quick).eval()
    model.load_state_dict(clip_state())
    return model


def clip_rows(x: torch.Tensor, *, quick: bool, mean: Any = MEAN, std: Any = STD) -> torch.Tensor:
    pixels = (x - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    with torch.no_grad():
        rows: torch.Tensor = clip_model(quick=quick).encode_image(pixels, normalize=True)
    return rows


def register(monkeypatch: pytest.MonkeyPatch, **tags: dict[str, Any]) -> None:
    """Give the tiny CLIP pretrained tags."""
    base = {"mean": MEAN, "std": STD, "interpolation": "bicubic", "resize_mode": "shortest"}
    table = {tag: {**base, **settings} for tag, settings in tags.items()}
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, "tiny", table)


def images(n: int, side: int = 32, seed: int = 0) -> torch.Tensor:
    return torch.rand(n, 3, side, side, generator=torch.Generator().manual_seed(seed))


def assert_rows(rows: torch.Tensor, expected: torch.Tensor, atol: float = 1e-6) -> None:
    torch.testing.assert_close(rows, expected, rtol=0, atol=atol)
