"""The demo's model and encoder as ``package.module:factory`` specs name them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal, Self

import torch
from torch import Tensor
from torch.nn import functional

from psi_engine.demo.assets import (
    ASSETS,
    CLASSIFIER,
    ENCODER,
    SECOND_ENCODER,
    fingerprint,
    read_weights,
)
from psi_engine.demo.captions import tokenize
from psi_engine.demo.networks import DIM, MEAN, STD, Classifier, DualEncoder
from psi_engine.demo.planted import Planted
from psi_engine.demo.world import CLASSES, SIDE

if TYPE_CHECKING:
    from psi_engine.data import Preprocess


def classifier(seed: int = 0) -> tuple[Classifier, Preprocess]:
    """Load the trained classifier with planted units.

    Parameters
    ----------
    seed : int
        Chooses the classes of the planted units.

    Returns
    -------
    module : Classifier
        In evaluation mode; layers ``stage1`` … ``stage4``, ``head`` and ``planted``.
    preprocess : Preprocess
        How its images are made.
    """
    from psi_engine.data import Preprocess

    blank = torch.zeros(len(CLASSES))
    module = Classifier(Planted(blank, blank, seed))
    module.load_state_dict(read_weights(ASSETS / CLASSIFIER))
    preprocess = Preprocess(
        image_size=SIDE, resize=SIDE, interpolation="bilinear", mean=(MEAN,) * 3, std=(STD,) * 3
    )
    return module.eval(), preprocess


def encoder() -> DemoEncoder:
    """Load the trained image-text dual encoder."""
    return _encoder("demo", ASSETS / ENCODER)


def second_encoder() -> DemoEncoder:
    """Load another encoder of the same design, trained on the same pictures from another seed."""
    return _encoder("demo-second", ASSETS / SECOND_ENCODER)


def _encoder(name: str, path: Path) -> DemoEncoder:
    module = DualEncoder()
    module.load_state_dict(read_weights(path))
    return DemoEncoder(module.eval(), fingerprint(path), name)


class DemoEncoder:
    """The dual encoder behind the protocol all encoders share.

    Parameters
    ----------
    module : DualEncoder
        In evaluation mode.
    fingerprint : str
        Identifies the weights.
    name : str
        For people.
    """

    dim = DIM
    image_size = SIDE
    interpolation: Literal["bilinear", "bicubic"] = "bicubic"
    text: Literal["encoder"] = "encoder"
    concepts: None = None
    concept_embeddings: None = None

    def __init__(self, module: DualEncoder, fingerprint: str, name: str) -> None:
        self.name = name
        self.module = module
        self.fingerprint = fingerprint
        self.device = torch.device("cpu")

    def to(self, device: torch.device | str) -> Self:
        """Move the weights to a device."""
        self.device = torch.device(device)
        self.module.to(self.device)
        return self

    @torch.no_grad()
    def encode_images(self, x: Tensor) -> Tensor:
        """Unit float32 rows (n, dim) of images, float32 (n, 3, 64, 64) in [0, 1]."""
        image: Tensor = self.module.image((x.to(self.device) - MEAN) / STD)
        return functional.normalize(image, dim=1)

    @torch.no_grad()
    def encode_texts(self, texts: list[str]) -> Tensor:
        """Unit float32 rows (n, dim) of texts."""
        text: Tensor = self.module.text(tokenize(list(texts)).to(self.device))
        return functional.normalize(text, dim=1)
