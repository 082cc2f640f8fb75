"""The demo's networks: a small convolutional classifier and a small image-text dual encoder."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional

from psi_engine.demo.captions import VOCABULARY
from psi_engine.demo.planted import Planted
from psi_engine.demo.world import CLASSES

WIDTHS = (24, 48, 96, 128)
DIM = 64
MEAN, STD = 0.5, 0.25
"""Each channel of an image in [0, 1] enters a network as (x − MEAN) / STD."""

_WORD = 64


def stage(inputs: int, outputs: int, kernel: int = 3, stride: int = 2) -> nn.Sequential:
    """Convolution, batch normalisation, ReLU."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    )


def stages() -> Iterator[nn.Sequential]:
    """Four stages from (b, 3, 64, 64) to (b, 128, 8, 8); the last looks at 49 pixels."""
    yield stage(3, WIDTHS[0], kernel=5)
    yield stage(WIDTHS[0], WIDTHS[1])
    yield stage(WIDTHS[1], WIDTHS[2])
    yield nn.Sequential(
        *stage(WIDTHS[2], WIDTHS[3], stride=1), *stage(WIDTHS[3], WIDTHS[3], stride=1)
    )


class Classifier(nn.Module):
    """Four stages, mean pooling, a linear head; planted units look at the logits.

    ``planted`` is evaluated on the way so that it can be observed like any other layer; the
    logits do not depend on it.
    """

    def __init__(self, planted: Planted | None = None) -> None:
        super().__init__()
        self.stage1, self.stage2, self.stage3, self.stage4 = stages()
        self.head = nn.Linear(WIDTHS[3], len(CLASSES))
        self.planted = planted

    def features(self, x: Tensor) -> Tensor:
        """Pooled maps of the last stage (b, 128)."""
        maps: Tensor = self.stage4(self.stage3(self.stage2(self.stage1(x))))
        return maps.mean((2, 3))

    def forward(self, x: Tensor) -> Tensor:
        """Logits (b, classes) of float32 (b, 3, 64, 64) images, normalised by ``MEAN``, ``STD``."""
        logits: Tensor = self.head(self.features(x))
        if self.planted is not None:
            self.planted(logits, x * (255 * STD) + 255 * MEAN)
        return logits


class ImageTower(nn.Module):
    """Four stages, mean and maximum pooling, a linear map to the shared space."""

    def __init__(self) -> None:
        super().__init__()
        self.stages = nn.Sequential(*stages())
        self.project = nn.Linear(2 * WIDTHS[3], DIM)

    def forward(self, x: Tensor) -> Tensor:
        """Unit rows (b, dim) of float32 (b, 3, 64, 64) images, normalised by ``MEAN``, ``STD``."""
        maps = self.stages(x)
        pooled = torch.cat((maps.mean((2, 3)), maps.amax((2, 3))), 1)
        return functional.normalize(self.project(pooled), dim=1)


class TextTower(nn.Module):
    """A bag of words through two layers: the words' embeddings are summed, then mixed."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(VOCABULARY, _WORD, padding_idx=0)
        self.mix = nn.Sequential(nn.Linear(_WORD, 128), nn.ReLU(), nn.Linear(128, DIM))

    def forward(self, ids: Tensor) -> Tensor:
        """Unit rows (b, dim) of token ids, int64 (b, words), 0 = padding."""
        return functional.normalize(self.mix(self.words(ids).sum(1)), dim=1)


class DualEncoder(nn.Module):
    """Image and text towers into one space, and the temperature they were trained at."""

    def __init__(self) -> None:
        super().__init__()
        self.image = ImageTower()
        self.text = TextTower()
        self.log_scale = nn.Parameter(torch.tensor(2.5))
