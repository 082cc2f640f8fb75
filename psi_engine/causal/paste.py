"""Put squares into images: whole numbers only, so every device gives the same picture."""

from __future__ import annotations

import torch
from torch import Tensor

from psi_engine.causal.config import Blend

WHOLE = 256
"""Weight of a pixel that is replaced wholly."""

_FEATHER = 8
# The edge that fades takes this share of the square's side on each side: an eighth.


def blend_weights(side: int, blend: Blend) -> Tensor:
    """How much of each pixel of a square is replaced.

    Parameters
    ----------
    side : int
    blend : {"hard", "feathered"}

    Returns
    -------
    Tensor
        int32 (side, side) in [0, 256]: 256 throughout for ``hard``; for ``feathered`` the
        product of two ramps that rise in equal steps over an eighth of the side (at least one
        pixel) and are flat inside.
    """
    if blend == "hard":
        return torch.full((side, side), WHOLE, dtype=torch.int32)
    width = max(1, side // _FEATHER)
    place = torch.arange(side)
    ramp = torch.minimum(place, side - 1 - place).clamp(max=width) + 1
    square = (width + 1) ** 2
    return ((ramp[:, None] * ramp * WHOLE * 2 + square) // (2 * square)).to(torch.int32)


def paste(views: Tensor, squares: Tensor, xyxy: Tensor, weights: Tensor) -> Tensor:
    """Blend one square into each image.

    Parameters
    ----------
    views : Tensor, uint8 (n, 3, H, W)
        Not modified.
    squares : Tensor, uint8 (n, 3, side, side)
    xyxy : Tensor, int64 (n, 4)
        Where they go: x0, y0, x1, y1, x1 and y1 open, inside the image, all of one side.
    weights : Tensor, int32 (n, side, side)
        As :func:`blend_weights` gives them, one per image.

    Returns
    -------
    Tensor
        uint8 (n, 3, H, W): (w·square + (256 − w)·image) / 256, rounded half up; a square equal
        to what is there changes nothing.
    """
    out = views.clone()
    side = squares.shape[-1]
    rows = xyxy[:, 1, None] + torch.arange(side, device=xyxy.device)
    columns = xyxy[:, 0, None] + torch.arange(side, device=xyxy.device)
    where = (
        torch.arange(len(views), device=views.device)[:, None, None, None],
        torch.arange(views.shape[1], device=views.device)[None, :, None, None],
        rows[:, None, :, None],
        columns[:, None, None, :],
    )
    share = weights[:, None]
    mixed = squares.to(torch.int32) * share + out[where].to(torch.int32) * (WHOLE - share)
    out[where] = ((mixed + WHOLE // 2) // WHOLE).to(torch.uint8)
    return out
