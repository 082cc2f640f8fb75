"""From another tool's examples and activations to the sites of a layer, as mining gives them."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from psi_engine.adapters.contents import TopExamples
from psi_engine.config import MineConfig
from psi_engine.mining import Miner
from psi_engine.types import (
    ActivationShape,
    ActivationStats,
    LayerSites,
    PoolSites,
    ReceptiveField,
    SiteSet,
)

_BATCH = 4096


def layer_of_activations(layer: str, values: Tensor, config: MineConfig) -> LayerSites:
    """Mine pooled activations of every image: the bits that a run over them would find.

    Parameters
    ----------
    layer : str
        A key of the randomness.
    values : Tensor, float32 (images, channels)
    config : MineConfig
    """
    images, channels = values.shape
    miner = Miner(layer, ActivationShape("flat", channels, (1, 1)), config)
    for start in range(0, images, _BATCH):
        part = values[start : start + _BATCH]
        miner.update(part[:, :, None, None], torch.arange(start, start + len(part)))
    return miner.result()


def layer_of_examples(
    part: TopExamples,
    shape: ActivationShape,
    images: int,
    config: MineConfig,
    known: Tensor | None = None,
) -> LayerSites:
    """The top sites of a layer as another tool found them, with a pool as mining draws it.

    Lowest and random sites are empty. Where the tool keeps no statistics, a channel's minimum is
    −∞ and its mean NaN: its range is not known, so that no measure that needs it is computed.

    Parameters
    ----------
    part : TopExamples
    shape : ActivationShape
        Of the layer; ``flat`` where each patch is a whole image.
    images : int
        In the data.
    config : MineConfig
        ``top_k`` at least the examples of a channel.
    known : Tensor, int64 (n,), optional
        The images that can be in the pool; None = all.
    """
    channels = part.numbers
    blank = _blank(len(channels), config.top_k)
    width = part.image_ids.shape[1]
    for into, value in zip(blank, _ordered(part, shape), strict=True):
        into[:, :width] = value
    return LayerSites(
        layer=part.layer,
        shape=shape,
        channels=channels,
        top=blank,
        bottom=_blank(len(channels), config.bottom_k),
        random=_blank(len(channels), config.reservoir),
        pool=_pool(part.layer, shape, torch.arange(images) if known is None else known, config),
        stats=part.stats or _unknown(part),
        images=images,
    )


def _blank(channels: int, width: int) -> SiteSet:
    return SiteSet(
        torch.full((channels, width), torch.nan),
        torch.full((channels, width), -1),
        torch.full((channels, width), -1, dtype=torch.int32),
        torch.full((channels, width), -1, dtype=torch.int32),
    )


def _ordered(part: TopExamples, shape: ActivationShape) -> SiteSet:
    """The examples in the order of mined sites: value descending, then image id ascending."""
    ids, empty = part.image_ids, part.image_ids < 0
    position = torch.zeros_like(ids)
    if part.positions is not None and shape.kind != "flat":
        position = part.positions
    values = torch.full(ids.shape, torch.nan) if part.values is None else part.values
    if part.values is not None:
        order = torch.argsort(torch.where(empty, torch.iinfo(torch.int64).max, ids), dim=1)
        keys = torch.where(empty, -torch.inf, values).gather(1, order)
        best = torch.sort(keys, dim=1, descending=True, stable=True).indices
        order = order.gather(1, best)
        ids, empty, position, values = (x.gather(1, order) for x in (ids, empty, position, values))
    columns = shape.grid[1]
    u, v = position.div(columns, rounding_mode="floor"), position % columns
    return SiteSet(
        torch.where(empty, torch.nan, values),
        ids,
        torch.where(empty, -1, u).to(torch.int32),
        torch.where(empty, -1, v).to(torch.int32),
    )


def _pool(layer: str, shape: ActivationShape, known: Tensor, config: MineConfig) -> PoolSites:
    """Random sites of the images, the very ones that mining this layer would keep.

    The pool looks at no activation, so that zeros do.
    """
    one = ActivationShape(shape.kind, 1, shape.grid)
    miner = Miner(layer, one, replace(config, bottom_k=0, reservoir=0))
    for ids in known.split(_BATCH):
        miner.update(torch.zeros(len(ids), 1, *shape.grid), ids)
    return miner.result().pool


def _unknown(part: TopExamples) -> ActivationStats:
    count = len(part.numbers)
    top = None if part.values is None else part.values[:, 0].nan_to_num(torch.inf)
    unknown = torch.full((count,), torch.nan, dtype=torch.float64)
    nothing = torch.zeros(count, dtype=torch.int64)
    return ActivationStats(
        minimum=torch.full((count,), -torch.inf),
        maximum=torch.full((count,), torch.inf) if top is None else top.to(torch.float32),
        mean=unknown,
        variance=unknown.clone(),
        sparsity=unknown.clone(),
        nonfinite=nothing,
        count=nothing.clone(),
    )


def whole_image(side: int) -> ReceptiveField:
    """The field of sites that are whole images of ``side`` pixels."""
    return ReceptiveField((float(side),) * 2, (0.0, 0.0), (side / 2,) * 2, "image")


def grid_field(grid: tuple[int, int], side: int, patch: int | str) -> ReceptiveField:
    """The field of sites that are cells of an even grid over the image.

    Parameters
    ----------
    grid : tuple of int
        (rows, columns).
    side : int
        Of the image, in pixels.
    patch : int
        Side of the crop in pixels, centred on the cell.
    """
    size = float(patch)
    jump = side / grid[0], side / grid[1]
    return ReceptiveField((size, size), jump, (jump[0] / 2, jump[1] / 2), "pixels")
