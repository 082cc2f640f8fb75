"""Forward passes whose rows do not depend on how many items come at once.

Matrix and convolution routines choose their algorithm by the shape of the batch, so the same
crop alone and among others differs by about 1e-6. Here every pass has one fixed number of items,
the last one padded; a row's bits are then a function of its own item (and of the device, the
library versions and the number of threads). ``tests/encoders/test_forward.py`` holds this.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from psi_engine.data import Preprocess
from psi_engine.encoders.protocol import Interpolation, Text
from psi_engine.errors import EncoderError, InputError

MICRO_BATCH = {"cpu": 32, "cuda": 256}
"""Items of one forward pass, by device type; other devices use the CPU's."""


class ModuleEncoder:
    """An encoder whose image side is a module: the base of the built-in ones.

    Parameters
    ----------
    name : str
        The spec it was made from.
    module : nn.Module
        Takes normalised float32 (n, 3, S, S), gives features (n, dim).
    preprocess : Preprocess
        Its image size, interpolation and normalisation.
    dim : int
    fingerprint : str
    """

    text: Text = "none"
    concepts: tuple[str, ...] | None = None
    concept_embeddings: Tensor | None = None

    def __init__(
        self, name: str, module: nn.Module, preprocess: Preprocess, dim: int, fingerprint: str
    ) -> None:
        self.name = name
        self.dim = dim
        self.image_size = preprocess.image_size
        self.interpolation: Interpolation = preprocess.interpolation
        self.fingerprint = fingerprint
        self.preprocess = preprocess
        self.device = torch.device("cpu")
        # Convolutions run up to twice as fast on CPU and GPU in this layout; transformers keep.
        self.module = module.eval().requires_grad_(False).to(memory_format=torch.channels_last)

    def to(self, device: torch.device | str) -> Self:
        """Move the weights to a device; returns itself."""
        self.device = torch.device(device)
        self.module.to(self.device)
        if self.concept_embeddings is not None:
            self.concept_embeddings = self.concept_embeddings.to(self.device)
        return self

    def encode_images(self, images: Tensor) -> Tensor:
        """Embed images that already have the encoder's size.

        Parameters
        ----------
        images : Tensor, float (n, 3, S, S) in [0, 1]
            On any device; not modified.

        Returns
        -------
        Tensor
            float32 (n, dim) of unit rows on the encoder's device. A row's bits depend on its
            image only.

        Raises
        ------
        InputError
            When the shape or dtype is another.
        """
        side = self.image_size
        if images.dim() != 4 or tuple(images.shape[1:]) != (3, side, side):
            raise InputError(
                "images have the wrong shape",
                got=tuple(images.shape),
                expected=f"(n, 3, {side}, {side})",
                fix="resize the crops to the encoder's image_size",
            )
        if not images.is_floating_point():
            raise InputError(
                "images have the wrong dtype",
                got=images.dtype,
                expected="float in [0, 1]",
                fix="divide uint8 images by 255",
            )
        return self._unit_rows(self._image_features, images)

    def encode_texts(self, texts: list[str]) -> Tensor:
        """Refuse: only encoders with a text tower embed texts."""
        raise EncoderError(
            f"{self.name} has no text tower",
            got=f"{len(texts)} texts",
            fix="use an open_clip encoder, or leave texts out (D is then unavailable)",
        )

    def _image_features(self, images: Tensor) -> Tensor:
        pixels = self.preprocess.normalise(images)
        return self._tower(pixels.contiguous(memory_format=torch.channels_last))

    def _tower(self, pixels: Tensor) -> Tensor:
        features: Tensor = self.module(pixels)
        return features

    def _unit_rows(self, features: Callable[[Tensor], Tensor], items: Tensor) -> Tensor:
        size = MICRO_BATCH.get(self.device.type, MICRO_BATCH["cpu"])
        rows = torch.empty(len(items), self.dim, device=self.device)
        with torch.inference_mode(), exact_float32(self.device):
            for start in range(0, len(items), size):
                part = items[start : start + size].to(self.device)
                missing = size - len(part)
                if missing:
                    part = torch.cat([part, part.new_zeros(missing, *part.shape[1:])])
                found = functional.normalize(features(part).float(), dim=1)
                rows[start : start + size] = found[: size - missing]
        return rows


@contextmanager
def exact_float32(device: torch.device) -> Iterator[None]:
    """Keep TF32 and nondeterministic algorithms out of the block, on CUDA."""
    if device.type != "cuda":
        yield
        return
    # Not cudnn.flags(allow_tf32=...): torch refuses to mix its older switches with these.
    cudnn: Any = torch.backends.cudnn
    places = (torch.backends.cuda.matmul, cudnn.conv, cudnn.rnn)
    before = [place.fp32_precision for place in places]
    flags = cudnn.enabled, cudnn.deterministic, cudnn.benchmark
    try:
        for place in places:
            place.fp32_precision = "ieee"
        cudnn.enabled, cudnn.deterministic, cudnn.benchmark = True, True, False
        yield
    finally:
        for place, value in zip(places, before, strict=True):
            place.fp32_precision = value
        cudnn.enabled, cudnn.deterministic, cudnn.benchmark = flags
