"""PIL's resize in whole numbers on any device: the same bits, whole batches at once."""

from __future__ import annotations

from functools import lru_cache
from math import ceil

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from psi_engine.data.preprocess import Interpolation, Preprocess

_BITS = 22  # of PIL's fixed-point weights for 8-bit images
_TRIALS = 4
_SUPPORT = {"bilinear": 1.0, "bicubic": 2.0}


def can_resample(width: int, height: int, preprocess: Preprocess) -> bool:
    """Whether :func:`resample` gives the bits of the PIL that is installed, for images of a size.

    Tried once per size on random images. PIL's order of the two passes differs between versions
    and sizes; the trial finds it.
    """
    return _rows_first(width, height, preprocess) is not None


def resample(images: Tensor, preprocess: Preprocess) -> Tensor:
    """What ``preprocess.view`` makes of images of one size, bit for bit.

    Parameters
    ----------
    images : Tensor, uint8 (batch, 3, H, W)
        Decoded images of a size for which :func:`can_resample` holds, on any device. Not
        modified.
    preprocess : Preprocess

    Returns
    -------
    Tensor
        uint8 (batch, 3, S, S) on the same device. Only what the crop keeps is computed.

    Notes
    -----
    PIL resizes 8-bit images in fixed point: rows and columns one after the other, each a
    weighted sum of neighbours with weights rounded to 22 bits, then rounded to 8 bits. Sums of
    whole numbers do not depend on their order, so a GPU gives the same bits. Source: the
    resampling code of Pillow (src/libImaging/Resample.c), whose arithmetic this restates.
    """
    height, width = images.shape[-2:]
    rows_first = _rows_first(width, height, preprocess)
    return _resample(images, preprocess, rows_first is not False)


def _resample(images: Tensor, preprocess: Preprocess, rows_first: bool) -> Tensor:
    height, width = images.shape[-2:]
    wide, high = preprocess.resized(width, height)
    side = preprocess.image_size
    left, top = round((wide - side) / 2.0), round((high - side) / 2.0)
    passes = [(width, wide, left), (height, high, top)]
    x = images if rows_first else images.mT
    for size, resized, start in passes if rows_first else reversed(passes):
        x = _along_rows(x, size, resized, start, side, preprocess.interpolation).mT
    return (x if rows_first else x.mT).contiguous()


@lru_cache(maxsize=256)
def _rows_first(width: int, height: int, preprocess: Preprocess) -> bool | None:
    """The order of PIL's passes; None if neither gives its bits, or both do by chance."""
    noise = np.random.default_rng(0).integers(0, 256, (_TRIALS, height, width, 3), dtype=np.uint8)
    images = torch.from_numpy(noise).permute(0, 3, 1, 2)
    expected = torch.stack([preprocess.view(Image.fromarray(pixels)) for pixels in noise])
    agree = [torch.equal(_resample(images, preprocess, order), expected) for order in (True, False)]
    resized = preprocess.resized(width, height)
    # with one row or column, or one pass, there is no order
    if all(agree) and min(width, height) > 1 and width != resized[0] and height != resized[1]:
        return None
    return next((order for order, same in zip((True, False), agree, strict=True) if same), None)


def _along_rows(
    x: Tensor, size: int, resized: int, start: int, side: int, interpolation: Interpolation
) -> Tensor:
    """Resize the last axis to ``resized`` and keep ``side`` from ``start`` on."""
    if size == resized:
        return x[..., start : start + side]
    places, weights = _taps(size, resized, start, side, interpolation)
    total = torch.full((*x.shape[:-1], side), 1 << (_BITS - 1), dtype=torch.int32, device=x.device)
    for place, weight in zip(places.to(x.device), weights.to(x.device), strict=True):
        total += x[..., place].to(torch.int32) * weight
    return (total >> _BITS).clamp_(0, 255).to(torch.uint8)


@lru_cache(maxsize=64)
def _taps(
    size: int, resized: int, start: int, side: int, interpolation: Interpolation
) -> tuple[Tensor, Tensor]:
    """Places int64 and weights int32, (taps, side), that make each output value."""
    scale = size / resized
    stretch = max(scale, 1.0)
    support = _SUPPORT[interpolation] * stretch
    taps = ceil(support) * 2 + 1
    places = torch.zeros(taps, side, dtype=torch.int64)
    weights = torch.zeros(taps, side, dtype=torch.int32)
    for column in range(side):
        centre = (start + column + 0.5) * scale
        first = max(0, int(centre - support + 0.5))
        last = min(size, int(centre + support + 0.5))
        # the reciprocal first, then the product: as there, for the same last bits
        inverse = 1.0 / stretch
        found = [_weight((x - centre + 0.5) * inverse, interpolation) for x in range(first, last)]
        total = 0.0
        for weight in found:
            total += weight
        for tap, weight in enumerate(found):
            places[tap, column] = first + tap
            share = weight / total * (1 << _BITS)
            weights[tap, column] = int(share - 0.5 if share < 0 else share + 0.5)
    return places, weights


def _weight(x: float, interpolation: Interpolation) -> float:
    x = abs(x)
    if interpolation == "bilinear":
        return max(0.0, 1.0 - x)
    a = -0.5
    if x < 1.0:
        return ((a + 2.0) * x - (a + 3.0)) * x * x + 1
    return (((x - 5) * x + 8) * x - 4) * a if x < 2.0 else 0.0
