"""What happens to an image before a model sees it."""

from __future__ import annotations

import io
import warnings
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from psi_engine.errors import InputError

Interpolation = Literal["bilinear", "bicubic"]

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

_FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


@dataclass(frozen=True)
class Preprocess:
    """Resize the shorter side, crop the centre, normalise.

    Parameters
    ----------
    image_size : int
        Side S of the square a model sees.
    resize : int
        Length the shorter side is resized to first; at least ``image_size``.
    interpolation : {"bilinear", "bicubic"}
        Filter of the resize, antialiased as PIL does it.
    mean, std : tuple of 3 floats
        Normalisation of RGB in [0, 1].
    squash : bool
        Resize both sides to ``resize``, giving up the aspect ratio, instead of the shorter one.

    Raises
    ------
    InputError
        If a field is out of range.

    Notes
    -----
    The steps and their rounding are those of torchvision's and timm's evaluation transforms on
    PIL images, so ``normalise(view(image))`` equals them bit for bit.
    """

    image_size: int
    resize: int
    interpolation: Interpolation = "bilinear"
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    squash: bool = False

    def __post_init__(self) -> None:
        if self.image_size < 1:
            raise InputError("image_size is too small", got=self.image_size, expected="at least 1")
        if self.resize < self.image_size:
            raise InputError(
                "resize is smaller than image_size",
                got=f"{self.resize} < {self.image_size}",
                expected="resize ≥ image_size, so that the crop is filled",
            )
        if self.interpolation not in get_args(Interpolation):
            raise InputError(
                "unknown interpolation",
                got=repr(self.interpolation),
                expected="bilinear or bicubic",
            )
        if len(self.mean) != 3 or len(self.std) != 3 or min(self.std) <= 0:
            raise InputError(
                "bad normalisation",
                got=f"mean {self.mean}, std {self.std}",
                expected="three numbers each, std above 0",
            )

    def view(self, image: Image.Image) -> Tensor:
        """The square a model sees, before normalisation.

        Parameters
        ----------
        image : PIL.Image
            Any mode and size; it is converted to RGB (transparency is dropped).

        Returns
        -------
        Tensor
            uint8 (3, S, S).
        """
        image = to_rgb(image)
        size = self.resized(*image.size)
        if size != image.size:
            image = image.resize(size, _FILTERS[self.interpolation])
        side = self.image_size
        left = round((size[0] - side) / 2.0)
        top = round((size[1] - side) / 2.0)
        if size != (side, side):
            image = image.crop((left, top, left + side, top + side))
        return to_tensor(image)

    def resized(self, width: int, height: int) -> tuple[int, int]:
        """Width and height of an image after the resize, before the crop."""
        short, long = min(width, height), max(width, height)
        longer = self.resize if self.squash else int(self.resize * long / short)
        return (self.resize, longer) if width <= height else (longer, self.resize)

    def normalise(self, views: Tensor) -> Tensor:
        """Views as a model wants them.

        Parameters
        ----------
        views : Tensor, (batch, 3, S, S)
            uint8 in [0, 255] or float in [0, 1], on any device. Not modified.

        Returns
        -------
        Tensor
            float32, the same shape and device: (x − mean) / std.
        """
        x = views.to(torch.float32)
        if not views.is_floating_point():
            x = x.div(255)
        mean = torch.tensor(self.mean, dtype=torch.float32, device=x.device).view(3, 1, 1)
        std = torch.tensor(self.std, dtype=torch.float32, device=x.device).view(3, 1, 1)
        return (x - mean).div_(std)


def to_rgb(image: Image.Image) -> Image.Image:
    """An image in RGB; a palette's transparency is resolved first, as PIL asks for.

    16-bit grey keeps its upper 8 bits, where PIL alone would turn all but the darkest white.
    """
    if image.mode == "RGB":
        return image
    if image.mode.startswith("I;16"):
        high = (np.asarray(image).astype(np.uint16) >> 8).astype(np.uint8)
        return Image.fromarray(high).convert("RGB")
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return image.convert("RGB")


def to_tensor(image: Image.Image) -> Tensor:
    """Pixels of an RGB image, uint8 (3, H, W)."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()


def decode(data: bytes) -> Image.Image:
    """Decode an image file held in memory, wholly, to RGB.

    Raises
    ------
    ValueError
        If the bytes are not an image or end too early; the message is the reason.
    """
    try:
        with warnings.catch_warnings():
            # Broken metadata beside intact pixels (common in web images) is nobody's concern here.
            warnings.simplefilter("ignore", UserWarning)
            with Image.open(io.BytesIO(data)) as image:
                image.load()
                return to_rgb(image)
    except MemoryError:
        raise
    except Exception as error:
        # Decoders meet broken files with any exception they like (struct.error, SyntaxError,
        # DecompressionBombError, OSError ...); all mean the same to us.
        if not data:
            reason = "the file is empty"
        elif isinstance(error, Image.UnidentifiedImageError):
            reason = "not an image that PIL can identify"
        else:
            reason = str(error) or type(error).__name__
        raise ValueError(reason) from error
