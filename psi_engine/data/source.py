"""The one shape every collection of images takes here."""

from __future__ import annotations

import hashlib
import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import IO

from PIL import Image
from torch import Tensor

from psi_engine.data.preprocess import Preprocess
from psi_engine.errors import DataError

PIECE = 4096
"""Bytes of a probe that enters a fingerprint."""


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
        Hex digest of which images, in which order, how large, with which labels, and of some of
        their bytes, as each source says. It changes when files are added, removed, renamed or
        resized, or when another number of images is used; not when equal files lie elsewhere or
        have other times.

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


def probe(stream: IO[bytes], start: int, size: int, pieces: int = 2) -> bytes:
    """Digest of a part of a file: its size, and pieces of its bytes spread evenly.

    Parameters
    ----------
    stream : binary file, open for reading
        Its position is changed.
    start, size : int
        The part, in bytes; it is read wholly where the pieces would cover it.
    pieces : int
        At least 2, of :data:`PIECE` bytes: the first and the last, others at even distances.

    Returns
    -------
    bytes
        8 of them. A change between the pieces that keeps the size is not seen: what reading
        every byte of a large collection would cost is what this is there to spare.
    """
    digest = hashlib.blake2b(size.to_bytes(8, "little"), digest_size=8)
    if size <= pieces * PIECE:
        stream.seek(start)
        digest.update(stream.read(size))
        return digest.digest()
    for number in range(pieces):
        stream.seek(start + number * (size - PIECE) // (pieces - 1))
        digest.update(stream.read(PIECE))
    return digest.digest()


def ends_of(file: str | Path) -> bytes:
    """Digest of a file's size, first and last piece; empty for one that may not be read.

    Raises
    ------
    DataError
        The system fails to read it.
    """
    try:
        # Without a buffer, which would read more than is asked for.
        with open(file, "rb", buffering=0) as stream:
            return probe(stream, 0, os.fstat(stream.fileno()).st_size)
    except PermissionError:
        return b""  # skipped, with its reason, when its turn comes
    except OSError as error:
        raise gone(file, error) from error


def gone(what: str | Path, error: OSError) -> DataError:
    """The error for a file that was there: a disk or a mount may come back, so none is skipped."""
    return DataError(
        f"{what} cannot be read any more",
        got=str(error).rstrip("."),
        fix="put it back as it was and run the same command again",
    )


def fingerprint_of(parts: Iterable[str | bytes]) -> str:
    """SHA-256 over parts with their lengths, so that no two lists of parts collide by joining."""
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode("utf-8", "surrogateescape") if isinstance(part, str) else part
        digest.update(len(data).to_bytes(8, "little"))
        digest.update(data)
    return digest.hexdigest()
