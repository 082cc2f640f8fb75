"""A small layer with known clusters, ready to be planned on; no files, no network."""

from __future__ import annotations

import torch
from torch import Tensor

from psi_engine.causal.plan import LayerPlan
from psi_engine.ops.random import hash_keys, uniform
from psi_engine.types import (
    ActivationShape,
    ActivationStats,
    LayerSites,
    PoolSites,
    ReceptiveField,
    SiteSet,
)

SIZE = 30  # of the images
GRID = 10
FIELD = ReceptiveField((9.0, 9.0), (3.0, 3.0), (1.5, 1.5), "graph")


def sites(image_ids: Tensor, seed: int = 0) -> SiteSet:
    channels, k = image_ids.shape
    where = uniform(hash_keys(seed, torch.arange(channels)[:, None]), torch.arange(k))
    place = (where * GRID * GRID).long()
    values = torch.arange(k, 0, -1).float().expand(channels, k).clone()
    values[image_ids < 0] = torch.nan
    return SiteSet(values, image_ids, (place // GRID).int(), (place % GRID).int())


def statistics(low: Tensor, high: Tensor) -> ActivationStats:
    blank = torch.zeros(len(low), dtype=torch.float64)
    counts = torch.zeros(len(low), dtype=torch.int64)
    return ActivationStats(low, high, blank, blank, blank, counts, counts)


def layer_plan(
    image_ids: Tensor | None = None,
    assignments: Tensor | None = None,
    *,
    channels: Tensor | None = None,
    field: ReceptiveField = FIELD,
    shape: ActivationShape | None = None,
    side: int = 9,
    seed: int = 0,
) -> LayerPlan:
    """Six channels of twelve sites from images of their own, in two clusters of six."""
    if image_ids is None:
        image_ids = torch.arange(72).view(6, 12)
    rows, k = image_ids.shape
    if assignments is None:
        assignments = (torch.arange(k) % 2).expand(rows, k).clone()
    channels = torch.arange(rows) if channels is None else channels
    top = sites(image_ids)
    random = sites(1000 + 100 * channels[:, None] + torch.arange(8), seed=1)
    mined = LayerSites(
        layer="layer",
        shape=ActivationShape("map", int(channels.max()) + 1, (GRID, GRID))
        if shape is None
        else shape,
        channels=channels,
        top=top,
        bottom=sites(torch.empty(rows, 0, dtype=torch.int64)),
        random=random,
        pool=PoolSites(*(torch.empty(0, dtype=torch.int64) for _ in range(3))),
        stats=statistics(torch.zeros(rows), torch.ones(rows)),
        images=2000,
    )
    return LayerPlan(mined, assignments, image_ids >= 0, field, side, SIZE, seed)
