"""Torch data sets as image sources."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from psi_engine.data.items import declared_classes, image_of, label_of, pixels_of
from psi_engine.data.source import CorruptImage, ImageSource, fingerprint_of
from psi_engine.errors import DataError

_PROBES = 16
"""Items that enter the fingerprint, evenly spread."""


class DatasetSource(ImageSource):
    """A map-style ``torch.utils.data.Dataset`` whose items are images, or (image, label, …).

    Parameters
    ----------
    dataset : Dataset
        With ``__len__`` and ``__getitem__``. PIL images go through the model's preprocess;
        tensors go to the model as they are (as float32, their values unchanged).

    Raises
    ------
    DataError
        If it has no length, is empty, or its items are of another kind.

    Notes
    -----
    Labels are taken from ``targets`` or ``labels`` where the data set has one of them, one per
    item; else they are read off the items the first time they are asked for, which reads every
    item once. The fingerprint hashes the type, the length, the class names, the declared labels
    and 16 items spread evenly, with their labels.
    """

    def __init__(self, dataset: Dataset[Any]) -> None:
        self.name = f"{type(dataset).__module__}.{type(dataset).__qualname__}"
        if not hasattr(dataset, "__len__"):
            raise DataError(
                "the data set has no length", got=self.name, expected="a Dataset with __len__"
            )
        total = len(dataset)
        if total == 0:
            raise DataError(f"the data set {self.name} is empty", fix="give one with images")
        self._dataset = dataset
        self.keys = [str(i) for i in range(total)]
        self.class_names = declared_classes(dataset)
        self._labels: Tensor | None = None
        self._labelled = False
        declared = self._declared_labels()
        self.fingerprint = fingerprint_of(
            [
                "dataset",
                self.name,
                str(total),
                repr(self.class_names),
                b"" if declared is None else declared.numpy().tobytes(),
                *self._probe(),
            ]
        )

    @property
    def labels(self) -> Tensor | None:
        """int64 (images,); None if the items carry no integer labels."""
        if not self._labelled:
            self._labels = self._declared_labels()
            if self._labels is None:
                self._labels = self._item_labels()
            self._labelled = True
        return self._labels

    def item(self, index: int) -> Image.Image | Tensor:
        """One item, its label left off."""
        return image_of(self._get(index), index, self.name)

    def _get(self, index: int) -> Any:
        if not 0 <= index < len(self):
            raise IndexError(f"image {index} of {len(self)}")
        try:
            return self._dataset[index]
        except OSError as error:  # what file-backed data sets raise on a broken file
            raise CorruptImage(str(error)) from error

    def _probe(self) -> list[bytes | str]:
        parts: list[bytes | str] = []
        for index in np.unique(np.linspace(0, len(self) - 1, _PROBES).astype(int)).tolist():
            try:
                item = self._get(index)
                array = pixels_of(image_of(item, index, self.name))
            except CorruptImage as error:
                parts.append(str(error))
                continue
            parts += [str(label_of(item)), str(array.shape), np.ascontiguousarray(array).tobytes()]
        return parts

    def _declared_labels(self) -> Tensor | None:
        for name in ("targets", "labels"):
            values = getattr(self._dataset, name, None)
            if values is None or not hasattr(values, "__len__") or len(values) != len(self):
                continue
            array = np.asarray(values)
            if array.ndim == 1 and array.dtype.kind in "iu":
                return _known(array)
        return None

    def _item_labels(self) -> Tensor | None:
        found = []
        for index in range(len(self)):
            try:
                item = self._get(index)
            except CorruptImage:
                found.append(-1)
                continue
            label = label_of(item)
            if label is None:
                return None
            found.append(label)
        return _known(np.asarray(found))


def _known(labels: np.ndarray) -> Tensor:
    labels = labels.astype(np.int64)
    return torch.from_numpy(np.where(labels < 0, -1, labels))
