"""Cut boxes out of images and resize them, batched, on the images' own device.

The resize is Pillow's, integer for integer: an antialiased filter along x, then along y, with
weights of 22 fractional bits and 8-bit values after each axis. Image encoders were trained on
what Pillow gives them, and integers leave CPU and CUDA nothing to disagree about.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from psi_engine.errors import InputError

_WEIGHT_BITS = 22  # 8 bits of pixel and 2 of overshoot leave this much of an int32
_SLAB = {"cpu": 1 << 19, "cuda": 1 << 26}  # values resized together: in cache, or few launches
_SUPPORT = {"bilinear": 1.0, "bicubic": 2.0}


def crop(views: Tensor, which: Tensor, xyxy: Tensor) -> Tensor:
    """Cut equally large boxes, pixel for pixel.

    Parameters
    ----------
    views : Tensor, any dtype (batch, channels, H, W)
    which : Tensor, int64 (n,)
        Row of ``views`` each box is cut from.
    xyxy : Tensor, int64 (n, 4)
        x0, y0, x1, y1 with x1, y1 open; all boxes of one width and one height, inside the image.

    Returns
    -------
    Tensor
        The dtype of ``views``, (n, channels, y1 − y0, x1 − x0).
    """
    x0, y0, x1, y1 = xyxy[0].tolist()
    rows = xyxy[:, 1, None] + torch.arange(y1 - y0, device=xyxy.device)
    columns = xyxy[:, 0, None] + torch.arange(x1 - x0, device=xyxy.device)
    channels = torch.arange(views.shape[1], device=views.device)
    return views[
        which[:, None, None, None],
        channels[None, :, None, None],
        rows[:, None, :, None],
        columns[:, None, None, :],
    ]


def crop_and_resize(
    views: Tensor,
    which: Tensor,
    xyxy: Tensor,
    size: int,
    interpolation: Literal["bilinear", "bicubic"] = "bicubic",
) -> Tensor:
    """Cut boxes and resize them to squares, as Pillow does it.

    Parameters
    ----------
    views : Tensor, uint8 (batch, 3, H, W)
    which : Tensor, int64 (n,)
        Row of ``views`` each box is cut from.
    xyxy : Tensor, int64 (n, 4)
        x0, y0, x1, y1 with x1, y1 open, inside the image. Boxes of one size are done together.
    size : int
        Side of the result.
    interpolation : {"bilinear", "bicubic"}

    Returns
    -------
    Tensor
        float32 (n, 3, size, size) in [0, 1], multiples of 1/255; on the device of ``views``.

    Raises
    ------
    InputError
        Views that are not uint8 (batch, 3, H, W), a box that is empty or leaves the image, or
        an image that is not there.

    Notes
    -----
    Equal, byte for byte, to ``PIL.Image.crop(box).resize((size, size), filter)`` for square
    boxes. Other boxes are filtered along x first too; Pillow 13 takes y first where that is less
    work, which moves a few values by a level.
    """
    _check(views, which, xyxy, size, interpolation)
    out = torch.empty(len(which), 3, size, size, dtype=torch.float32, device=views.device)
    sides = torch.stack([xyxy[:, 2] - xyxy[:, 0], xyxy[:, 3] - xyxy[:, 1]], dim=1)
    for side in sides.unique(dim=0):
        group = (sides == side).all(dim=1).nonzero().squeeze(1)
        slab = max(1, _SLAB[views.device.type] // (3 * size * max(size, int(side.max()))))
        for part in group.split(slab):
            x = _resize(crop(views, which[part], xyxy[part]), 3, size, interpolation)
            x = _resize(x, 2, size, interpolation)
            out[part] = x.to(torch.float32).div_(255)
    return out


def _resize(x: Tensor, axis: int, size: int, interpolation: str) -> Tensor:
    """Filter one axis of a uint8 (n, channels, height, width) down or up to ``size``."""
    length = x.shape[axis]
    if length == size:
        return x
    first, weights = _weights(length, size, interpolation)
    shape = [1, 1, 1, 1]
    shape[axis] = size
    total: Tensor | None = None
    for tap, weight in enumerate(torch.from_numpy(weights).to(x.device)):
        # Past the last pixel the weights are 0.
        source = torch.from_numpy(np.minimum(first + tap, length - 1)).to(x.device)
        term = x.index_select(axis, source).to(torch.int32).mul_(weight.view(shape))
        total = term.add_(1 << (_WEIGHT_BITS - 1)) if total is None else total.add_(term)
    assert total is not None  # a filter has at least one tap
    return total.bitwise_right_shift_(_WEIGHT_BITS).clamp_(0, 255).to(torch.uint8)


@lru_cache(maxsize=64)
def _weights(length: int, size: int, interpolation: str) -> tuple[np.ndarray, np.ndarray]:
    """First source pixel of each output pixel, int64 (size,), and weights int32 (taps, size).

    As in Pillow's ``Resample.c``: the filter is stretched by the scale where that is above 1,
    cut off at the border, normalised in double precision and rounded half away from zero.
    """
    scale = length / size
    stretch = max(scale, 1.0)
    support = _SUPPORT[interpolation] * stretch
    centre = (np.arange(size) + 0.5) * scale
    first = np.maximum((centre - support + 0.5).astype(np.int64), 0)
    end = np.minimum((centre + support + 0.5).astype(np.int64), length)
    tap = np.arange((end - first).max())[:, None]
    weight = _filter((tap + first - centre + 0.5) * (1.0 / stretch), interpolation)
    weight = np.where(tap < end - first, weight, 0.0)
    weight = weight / weight.sum(axis=0)
    fixed = np.trunc(weight * (1 << _WEIGHT_BITS) + np.copysign(0.5, weight))
    return first, fixed.astype(np.int32)


def _filter(x: np.ndarray, interpolation: str) -> np.ndarray:
    x = np.abs(x)
    if interpolation == "bilinear":
        return np.maximum(1.0 - x, 0.0)
    a = -0.5  # Keys, IEEE Trans. ASSP 29 (1981)
    inner = ((a + 2.0) * x - (a + 3.0)) * x * x + 1
    outer = (((x - 5) * x + 8) * x - 4) * a
    return np.where(x < 1, inner, np.where(x < 2, outer, 0.0))


def _check(views: Tensor, which: Tensor, xyxy: Tensor, size: int, interpolation: str) -> None:
    if views.ndim != 4 or views.shape[1] != 3 or views.dtype != torch.uint8:
        raise InputError(
            "views cannot be cropped",
            got=f"{views.dtype} {tuple(views.shape)}",
            expected="uint8 (batch, 3, H, W)",
        )
    if which.ndim != 1 or xyxy.shape != (len(which), 4):
        raise InputError(
            "boxes do not fit",
            got=f"which {tuple(which.shape)}, xyxy {tuple(xyxy.shape)}",
            expected="(n,) and (n, 4)",
        )
    if size < 1 or interpolation not in ("bilinear", "bicubic"):
        raise InputError(
            "cannot resize crops",
            got=f"size {size}, interpolation {interpolation!r}",
            expected="a size of at least 1, bilinear or bicubic",
        )
    if not len(which):
        return
    batch, _, height, width = views.shape
    x0, y0, x1, y1 = xyxy.unbind(1)
    inside = (x0 >= 0) & (y0 >= 0) & (x1 > x0) & (y1 > y0) & (x1 <= width) & (y1 <= height)
    inside &= (which >= 0) & (which < batch)
    if not bool(inside.all()):
        row = int((~inside).nonzero()[0])
        raise InputError(
            "a box leaves its image",
            got=f"box {xyxy[row].tolist()} of view {int(which[row])}",
            expected=f"inside {width} × {height} pixels of one of {batch} views",
        )
