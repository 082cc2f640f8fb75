"""What stands in where another tool's files come without their model, images or encoder.

A run folder needs all three to be there. Imported sites have no model when only images and an
encoder are given; imported embeddings have neither images nor encoder. Stand-ins say so by their
name, :data:`IMPORTED`, in the manifest and in the settings.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Self

import torch
from torch import Tensor, nn

from psi_engine.data import ImageSource, Preprocess
from psi_engine.data.source import fingerprint_of
from psi_engine.errors import EncoderError, InputError
from psi_engine.models import LoadedModel

IMPORTED = "imported"
"""Name of the model, the data or the encoder that an import did without."""

SIDE = 224
"""Side of pictures where neither a model nor an encoder says."""


def pictures_only(fingerprint: str, side: int) -> LoadedModel:
    """No model, but a way to look at images: the shorter side at ``side``, the centre cut out.

    Parameters
    ----------
    fingerprint : str
        Of the files that were imported.
    side : int
        In pixels.
    """
    preprocess = Preprocess(image_size=side, resize=side, interpolation="bicubic")
    return LoadedModel(IMPORTED, nn.Identity(), preprocess, None, "none", fingerprint)


class NumberedImages(ImageSource):
    """Images of which only the names are known.

    Parameters
    ----------
    keys : sequence of str
    """

    name = IMPORTED
    class_names = None

    def __init__(self, keys: Sequence[str]) -> None:
        self.keys = keys
        self.fingerprint = fingerprint_of([IMPORTED, *keys])

    @property
    def labels(self) -> None:
        """Unknown."""
        return None

    def item(self, index: int) -> Tensor:
        """Refuse: the picture is not there.

        Raises
        ------
        InputError
            Always.
        """
        raise InputError(
            "the images of imported embeddings are not there",
            got=self.keys[index],
            fix="import again with --data",
        )


class GivenEmbeddings:
    """An encoder whose embeddings came in files: it cannot embed anything new.

    Parameters
    ----------
    name : str
        What the files say it is.
    dim : int
    fingerprint : str
        Of the files.
    concepts : tuple of str, optional
    concept_embeddings : Tensor, float32 (concepts, dim), unit rows, optional
    """

    image_size: int = SIDE
    interpolation: Literal["bilinear", "bicubic"] = "bicubic"

    def __init__(
        self,
        name: str,
        dim: int,
        fingerprint: str,
        concepts: tuple[str, ...] | None = None,
        concept_embeddings: Tensor | None = None,
    ) -> None:
        self.name, self.dim, self.fingerprint = name, dim, fingerprint
        self.concepts, self.concept_embeddings = concepts, concept_embeddings
        self.text: Literal["encoder", "fixed", "none"] = (
            "none" if concept_embeddings is None else "fixed"
        )

    def encode_images(self, images: Tensor) -> Tensor:
        """Refuse.

        Raises
        ------
        EncoderError
            Always.
        """
        raise EncoderError(
            "imported embeddings have no encoder",
            got=f"{len(images)} new crops to embed",
            fix="import again with --data and --encoder",
        )

    def encode_texts(self, texts: list[str]) -> Tensor:
        """Refuse, as :meth:`encode_images`."""
        raise EncoderError("imported embeddings have no encoder", got=f"{len(texts)} new texts")

    def to(self, device: torch.device | str) -> Self:
        """Nothing to move."""
        return self
