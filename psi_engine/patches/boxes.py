"""From sites to boxes: which window of which image each site stands for."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

from psi_engine.errors import InputError
from psi_engine.types import Boxes, LayerSites, PatchSet, ReceptiveField

Kind = Literal["top", "bottom", "random", "pool"]


def site_boxes(u: Tensor, v: Tensor, field: ReceptiveField, image_size: int) -> Tensor:
    """The window of each site, moved inward where it would leave the image.

    Parameters
    ----------
    u, v : Tensor, integer (...)
        Sites of one layer.
    field : ReceptiveField
        Of that layer.
    image_size : int
        Side S of the model's input.

    Returns
    -------
    Tensor
        int64 (..., 4): x0, y0, x1, y1 with 0 ≤ x0 < x1 ≤ S and all widths and heights of the
        layer equal (the field's, rounded up, at most S), except that prefix tokens get the whole
        image. A centre on a pixel's border rounds towards the higher pixel.
    """
    u, v = u.to(torch.int64), v.to(torch.int64)
    row, column = u, v
    if field.tokens is not None:
        prefix, columns = field.tokens
        row = (u - prefix).div(columns, rounding_mode="floor")
        column = (u - prefix) % columns
    y0, height = _interval(row, field, 0, image_size)
    x0, width = _interval(column, field, 1, image_size)
    boxes = torch.stack([x0, y0, x0 + width, y0 + height], dim=-1)
    if field.tokens is not None:
        whole = torch.tensor([0, 0, image_size, image_size], device=u.device)
        boxes = torch.where((u < field.tokens[0])[..., None], whole, boxes)
    return boxes


def _interval(
    unit: Tensor, field: ReceptiveField, axis: int, image_size: int
) -> tuple[Tensor, int]:
    """First pixel of each unit's window along an axis, and the window's length."""
    # A field measured in floating point may exceed a whole number by a rounding error.
    length = min(image_size, max(1, math.ceil(field.size[axis] - 1e-6)))
    centre = field.start[axis] + unit.to(torch.float64) * field.jump[axis]
    first = torch.floor(centre - length / 2 + 0.5).to(torch.int64)
    return first.clamp(0, image_size - length), length


def collect_patches(
    mined: Mapping[str, LayerSites],
    fields: Mapping[str, ReceptiveField],
    image_size: int,
    kinds: Sequence[Kind] = ("top", "pool"),
) -> PatchSet:
    """The distinct crops that the sites of a run need.

    Parameters
    ----------
    mined : mapping of layer name to LayerSites
    fields : mapping of layer name to ReceptiveField
        One for each layer.
    image_size : int
    kinds : sequence of {"top", "bottom", "random", "pool"}
        Which sites.

    Returns
    -------
    PatchSet
        Boxes sorted by image id, then x0, y0, x1, y1, each once however many sites share it;
        rows of −1 for empty slots.

    Raises
    ------
    InputError
        A layer without a field.
    """
    if missing := [layer for layer in mined if layer not in fields]:
        raise InputError("layers without a receptive field", got=missing, expected=list(mined))
    keys: list[tuple[str, str]] = []
    places: list[Tensor] = []
    for layer, sites in mined.items():
        for kind in kinds:
            part = getattr(sites, kind)
            boxes = site_boxes(part.u, part.v, fields[layer], image_size)
            keys.append((layer, kind))
            places.append(torch.cat([part.image_ids[..., None], boxes], dim=-1))
    rows = [torch.full(place.shape[:-1], -1) for place in places]
    if places:
        flat = torch.cat([place[place[..., 0] >= 0] for place in places])
        distinct, which = flat.unique(dim=0, return_inverse=True)
        counts = [int((place[..., 0] >= 0).sum()) for place in places]
        for row, place, part in zip(rows, places, which.split(counts), strict=True):
            row[place[..., 0] >= 0] = part
    else:
        distinct = torch.empty(0, 5, dtype=torch.int64)
    return PatchSet(Boxes(distinct[:, 0], distinct[:, 1:]), dict(zip(keys, rows, strict=True)))
