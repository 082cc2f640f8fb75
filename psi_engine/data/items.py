"""What the items of torch data sets hold: an image, alone or first in a tuple with its label."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from psi_engine.data.source import CorruptImage
from psi_engine.errors import DataError


def image_of(item: Any, index: int, source: str) -> Image.Image | Tensor:
    """The image of an item: a PIL image, decoded, or a tensor as float32 on the CPU.

    Raises
    ------
    CorruptImage
        A PIL image that cannot be decoded.
    DataError
        It is something else.
    """
    image = item[0] if isinstance(item, tuple | list) and len(item) > 0 else item
    if isinstance(image, Tensor):
        return image.detach().to("cpu", torch.float32)
    if isinstance(image, Image.Image):
        try:
            image.load()
        except (OSError, ValueError, SyntaxError) as error:
            raise CorruptImage(str(error)) from error
        return image
    raise DataError(
        f"item {index} of {source} is not an image",
        got=type(image).__name__,
        expected="a PIL image or a torch tensor, alone or first in a tuple with its label",
    )


def label_of(item: Any) -> int | None:
    """The whole number that comes second in an item; None if there is none."""
    label = item[1] if isinstance(item, tuple | list) and len(item) > 1 else None
    if isinstance(label, Tensor | np.ndarray | np.generic) and label.ndim == 0:
        label = label.item()
    return label if isinstance(label, int) else None


def pixels_of(image: Image.Image | Tensor) -> np.ndarray:
    """Values of an image, for digests."""
    return image.numpy() if isinstance(image, Tensor) else np.asarray(image)


def declared_classes(dataset: Any) -> tuple[str, ...] | None:
    """Names in a data set's ``classes``, where it has them."""
    names = getattr(dataset, "classes", None)
    if not isinstance(names, Sequence) or isinstance(names, str):
        return None
    return tuple(map(str, names)) or None
