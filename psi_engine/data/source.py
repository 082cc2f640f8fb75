"""The one shape every collection of images takes here."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence

from PIL import Image
from torch import Tensor

from psi_engine.data.preprocess import Preprocess


class CorruptImage(Exception):
    """One image that cannot be read; the loader skips it and keeps the reason."""


class ImageSource(ABC):
    """Images in a fixed order; the position of an image is its id.

    Attributes
    ----------
    name : str
        What the user called it.
    keys : sequence of str
        A readable name per image (relative path, or ``file.parquet#row``), in source order.
    labels : Tensor or None
        int64 (images,), −1 where unknown; None when the source has no labels at all.
    class_names : tuple of str or None
        Names of the labels.
    fingerprint : str
        Hex digest of the listing: which images, in which order, how large. It changes when
        files are added, removed, renamed or resized, or when another number of images is used.

    Notes
    -----
    Sources can be pickled, so that processes can share the decoding.
    """

    name: str
    keys: Sequence[str]
    class_names: tuple[str, ...] | None
    fingerprint: str

    @property
    @abstractmethod
    def labels(self) -> Tensor | None:
        """int64 (images,), −1 where unknown; None without labels."""

    @abstractmethod
    def item(self, index: int) -> Image.Image | Tensor:
        """The image itself, or a tensor that a data set has already prepared.

        Raises
        ------
        CorruptImage
            If it cannot be read.
        """

    def __len__(self) -> int:
        return len(self.keys)

    def view(self, index: int, preprocess: Preprocess) -> Tensor:
        """One image as the loader hands it on.

        Parameters
        ----------
        index : int
            Position in source order.
        preprocess : Preprocess
            Resize and crop; tensors of a data set are left as they are.

        Returns
        -------
        Tensor
            uint8 (3, S, S); or float32 of the data set's own shape.

        Raises
        ------
        CorruptImage
            If the image cannot be read.
        """
        item = self.item(index)
        return item if isinstance(item, Tensor) else preprocess.view(item)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r}, {len(self)} images)"


def fingerprint_of(parts: Iterable[str | bytes]) -> str:
    """SHA-256 over parts with their lengths, so that no two lists of parts collide by joining."""
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode("utf-8", "surrogateescape") if isinstance(part, str) else part
        digest.update(len(data).to_bytes(8, "little"))
        digest.update(data)
    return digest.hexdigest()
