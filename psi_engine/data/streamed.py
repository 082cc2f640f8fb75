"""Iterable torch data sets as image sources: numbered as they come."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any, NoReturn

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import IterableDataset

from psi_engine.data.items import declared_classes, image_of, label_of, pixels_of
from psi_engine.data.source import CorruptImage, ImageSource, fingerprint_of
from psi_engine.errors import DataError, InputError
from psi_engine.types import Progress

_DIGEST = 8  # bytes


class StreamSource(ImageSource):
    """An iterable data set whose items are images, or (image, label, …), in the same order always.

    An item's id is its place in the stream. Opening goes through the stream once, to count and
    to note a digest of every item; reading goes through it again, forward, and starts anew when
    an earlier item is asked for. So a run reads the stream about three times (counting, mining,
    embedding), and continues by passing over what it has seen.

    Parameters
    ----------
    dataset : IterableDataset
        Every ``iter(dataset)`` must give the same items in the same order.
    limit : int, optional
        Take only the first so many; an endless stream needs it.
    progress : callable, optional
        ``progress("counting images", so far, length or so far)``: a stream has no length before
        its end, unless it declares one.

    Raises
    ------
    DataError
        It is empty, raises an error, can be read only once, or its items are of another kind.

    Notes
    -----
    What a stream cannot do: be shared with worker processes (``workers = 0``), be spread evenly
    by ``max_images`` (the first ones are taken), skip an item at which it raises an error itself
    (an image that cannot be decoded is skipped). Where that hurts, write the images to a folder,
    Parquet or tar shards once.

    The fingerprint covers the type, the order and the pixels of every item, and the labels.
    """

    def __init__(
        self,
        dataset: IterableDataset[Any],
        limit: int | None = None,
        progress: Progress | None = None,
    ) -> None:
        self.name = f"{type(dataset).__module__}.{type(dataset).__qualname__}"
        self._dataset = dataset
        self._iterator: Iterator[Any] | None = None
        self._next = 0
        if isinstance(dataset, Iterator):
            raise DataError(
                f"{self.name} can be read only once",
                expected="an iterable data set that starts anew with every iter()",
                fix="wrap it in a torch IterableDataset whose __iter__ makes it",
            )
        expected = len(dataset) if hasattr(dataset, "__len__") else 0
        digests: list[bytes] = []
        labels: list[int | None] = []
        while limit is None or len(digests) < limit:
            index = len(digests)
            try:
                item = self._pull()
            except StopIteration:
                break
            digests.append(self._digest(index, item))
            labels.append(label_of(item))
            if progress is not None:
                progress("counting images", index + 1, max(expected, index + 1))
        self._restart()
        if not digests:
            raise DataError(f"the data set {self.name} is empty", fix="give one with images")
        self._digests = digests
        self.keys = [str(index) for index in range(len(digests))]
        self.class_names = declared_classes(dataset)
        known = [-1 if label is None else max(label, -1) for label in labels]
        self._labels = None if all(x is None for x in labels) else torch.tensor(known)
        self.fingerprint = fingerprint_of(["stream", self.name, *digests, *map(str, labels)])

    @property
    def labels(self) -> Tensor | None:
        """int64 (images,), −1 where an item has none; None where none has one."""
        return self._labels

    def item(self, index: int) -> Image.Image | Tensor:
        """One item, its label left off; what lies before it is passed over.

        Raises
        ------
        CorruptImage
            It cannot be decoded.
        DataError
            The stream gave another item here when it was counted.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"image {index} of {len(self)}")
        if index < self._next:
            self._restart()
        try:
            while self._next <= index:
                item = self._pull()
        except StopIteration:
            self._changed(index, "its end")
        if self._digest(index, item) != self._digests[index]:
            self._changed(index, "another item")
        return image_of(item, index, self.name)

    def _pull(self) -> Any:
        if self._iterator is None:
            self._iterator = iter(self._dataset)
        try:
            item = next(self._iterator)
        except (StopIteration, InputError):
            raise
        except Exception as error:
            raise DataError(
                f"{self.name} raised an error at item {self._next}",
                got=f"{type(error).__name__}: {error}",
                fix="let the data set pass over what it cannot read",
            ) from error
        self._next += 1
        return item

    def _restart(self) -> None:
        self._iterator, self._next = None, 0

    def _digest(self, index: int, item: Any) -> bytes:
        digest = hashlib.blake2b(digest_size=_DIGEST)
        try:
            pixels = pixels_of(image_of(item, index, self.name))
            digest.update(f"{pixels.dtype} {pixels.shape}".encode())
            digest.update(np.ascontiguousarray(pixels).data)
        except CorruptImage as error:
            digest.update(str(error).encode())
        return digest.digest()

    def _changed(self, index: int, got: str) -> NoReturn:
        raise DataError(
            f"{self.name} is not the same each time it is read",
            got=f"{got} at place {index}",
            expected="the same items in the same order",
            fix="turn its shuffling off or seed it, or write the images to a folder first",
        )

    def __getstate__(self) -> dict[str, Any]:
        raise TypeError("an iterable data set, which only one process can go through")
