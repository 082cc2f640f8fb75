"""A toy world for the pipeline's tests: 32-pixel images, a tiny net, a pixel encoder."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from psi_engine.data import Preprocess

PREPROCESS = Preprocess(
    image_size=32, resize=32, interpolation="bilinear", mean=(0.5,) * 3, std=(0.5,) * 3
)
CLASSES = ("red", "green", "blue")


class Net(nn.Module):
    """Two convolutions and a head. Channel 7 of ``conv2`` is dead, channel 0 is all negative."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 6, 3, stride=2, padding=1)
        self.conv2 = nn.Conv2d(6, 8, 3, stride=2, padding=1)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv2(self.conv1(x).relu())
        return self.head(x.mean((2, 3)))


def model() -> tuple[nn.Module, Preprocess]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = Net()
    with torch.no_grad():
        net.conv2.weight[7] = 0
        net.conv2.bias[7] = 0
        net.conv2.bias[0] = -100
    return net, PREPROCESS


class Poisoned(nn.Module):
    """Channel 1 is NaN for all but the six reddest of the images."""

    def forward(self, x: Tensor) -> Tensor:
        maps = x[:, :3].clone()
        red = x[:, 0].mean((1, 2)) > 0.9
        maps[:, 1] = torch.where(red[:, None, None], maps[:, 1], torch.nan)
        return maps


def poisoned() -> tuple[nn.Module, Preprocess]:
    return nn.Sequential(Poisoned()), PREPROCESS


class PixelEncoder:
    """Embeds a picture as its 4 × 4 colours, a text as the colour it names (else as noise)."""

    name = "toy"
    dim = 48
    image_size = 8
    interpolation = "bilinear"
    text = "encoder"
    concepts = None
    concept_embeddings = None
    fingerprint = "toy-1"

    def encode_images(self, images: Tensor) -> Tensor:
        small = torch.nn.functional.avg_pool2d(images, 2).flatten(1) - 0.45
        return torch.nn.functional.normalize(small, dim=1)

    def encode_texts(self, texts: list[str]) -> Tensor:
        rows = []
        for text in texts:
            digest = hashlib.blake2b(text.encode(), digest_size=self.dim).digest()
            noise = np.frombuffer(digest, np.uint8).astype(np.float32) / 255 - 0.5
            for channel, colour in enumerate(CLASSES):
                if colour in text:
                    noise.reshape(3, 16)[channel] += 3
            rows.append(torch.from_numpy(noise))
        return torch.nn.functional.normalize(torch.stack(rows), dim=1)

    def to(self, device: torch.device | str) -> PixelEncoder:
        return self


class TextlessEncoder(PixelEncoder):
    """The same without a text side."""

    text = "none"

    encode_texts = None  # type: ignore[assignment]


def encoder() -> PixelEncoder:
    return PixelEncoder()


def textless() -> TextlessEncoder:
    return TextlessEncoder()


def draw(seed: int, colour: int) -> Image.Image:
    """Draw noise with a square of one colour somewhere."""
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 120, (32, 32, 3), dtype=np.uint8)
    x, y = rng.integers(2, 14, 2)
    pixels[y : y + 16, x : x + 16, colour] = 255
    return Image.fromarray(pixels)


def write_images(folder: Path, count: int, *, labelled: bool = True) -> Path:
    """Write an ImageFolder of three colour classes, or a flat folder."""
    for number in range(count):
        colour = number % 3
        home = folder / CLASSES[colour] if labelled else folder
        home.mkdir(parents=True, exist_ok=True)
        draw(number, colour).save(home / f"{number:04d}.png")
    return folder


RUN_OPTIONS: dict[str, Any] = {
    "model": "tests.toy:model",
    "layers": ["conv2", "head"],
    "encoder": "tests.toy:encoder",
    "patch": 16,
    "top_k": 12,
    "pool": 60,
    "replicates": 40,
    "device": "cpu",
}
"""A run of the toy world; ``data`` and ``out`` are missing."""
