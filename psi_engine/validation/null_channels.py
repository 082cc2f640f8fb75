"""Random sets of patches that go through scoring as if each were a channel.

The pool of a layer is cut in two by image. Random sets are drawn from one half; the other half is
the pool that real channels and random sets alike are scored against, so that no random set is
compared with itself or with another patch of its own images. Real channels keep all their patches,
also those of the pool's images: :func:`differences` counts them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from psi_engine.ops.random import hash_keys, permutations, string_key, uniform
from psi_engine.stored import StoredLayer
from psi_engine.validation.part import Context

_CROWDED = 1.0
# Sets that a patch is in, on average, from which sets overlap enough to be told.


@dataclass(frozen=True)
class NullChannels:
    """Random sets of one layer.

    rows : int64 (sets, patches), places in the layer's pool, one an image. embeddings, labels
    (None without) and channel_ids of the sets. pool : float32 (m, dim), the other half.
    """

    rows: Tensor
    embeddings: Tensor
    labels: Tensor | None
    channel_ids: Tensor
    pool: Tensor
    notes: tuple[str, ...]

    @property
    def arguments(self) -> dict[str, Any]:
        """What :meth:`StoredRun.score` is given in place of the layer's own channels."""
        return {
            "embeddings": self.embeddings,
            "labels": self.labels,
            "channel_ids": self.channel_ids,
            "mask": None,
            "pool": self.pool,
        }


def pool_halves(layer: StoredLayer, seed: int) -> tuple[Tensor, Tensor]:
    """Places in the pool to draw sets from, and those to compare with: int64 (a,) and (b,).

    An image's patches all fall on one side, by a bit of a hash of the seed and the image.
    """
    key = hash_keys(seed, string_key("null-channels/half"), layer.pool_images)
    for_sets = (key >> 62) & 1 == 1
    return torch.nonzero(for_sets)[:, 0], torch.nonzero(~for_sets)[:, 0]


def differences(layer: StoredLayer, seed: int) -> tuple[str, ...]:
    """How the layer's channels differ from random sets by the way both are made, in words.

    Channels may hold crops that are rows of the comparison pool, and several patches of an image;
    random sets hold neither.
    """
    for_pool = pool_halves(layer, seed)[1]
    mask, crops = layer.mask, layer.rows
    images = layer.sites.image_ids[:, : crops.shape[1]]
    held = int(mask.sum())
    same = torch.isin(crops[mask], layer.patches.rows[layer.name, "pool"][for_pool])
    near = torch.isin(images[mask], layer.pool_images[for_pool])
    notes = []
    if bool(near.any()):
        notes.append(
            f"{layer.name}: {int(same.sum())} of the channels' {held} patches are themselves rows "
            f"of the pool they are compared with, and {int(near.sum())} are of its images; of the "
            "random sets' patches none is"
        )
    full = torch.nonzero(mask.any(1))[:, 0].tolist()
    several = [
        [int(mask[row].sum()), *(len(torch.unique(x[row][mask[row]])) for x in (images, crops))]
        for row in full
    ]
    if any(of_images < patches for patches, of_images, _ in several):
        patches, of_images, of_crops = np.median(several, axis=0)
        notes.append(
            f"{layer.name}: a channel's {patches:g} patches come from {of_images:g} images and are "
            f"{of_crops:g} distinct crops (medians), a random set's {crops.shape[1]} from as many "
            "images: repeats make channels' clusters tighter than chance alone would"
        )
    return tuple(notes)


def lack_of_images(context: Context) -> str | None:
    """Why random sets as large as the channels of some layer cannot be drawn; None if they can."""
    for layer in context.stored.layers.values():
        patches = layer.rows.shape[1]
        for_sets, for_pool = (
            len(torch.unique(layer.pool_images[half]))
            for half in pool_halves(layer, context.options.seed)
        )
        if min(for_sets, for_pool) < patches:
            return (
                f"the pool of {layer.name} has {for_sets} images to draw random sets from and "
                f"{for_pool} to compare with: fewer than the {patches} patches of a channel"
            )
    return None


def null_channels(layer: StoredLayer, sets: int, seed: int) -> NullChannels:
    """Draw random sets as large as the layer's channels from one half of its pool.

    Parameters
    ----------
    layer : StoredLayer
    sets : int
    seed : int
        A set depends on it, the layer's name and the set's number only.

    Returns
    -------
    NullChannels
        Each set holds distinct images, drawn evenly, and of each image one of its patches.
    """
    patches = layer.rows.shape[1]
    for_sets, for_pool = pool_halves(layer, seed)
    images, of_image = torch.unique(layer.pool_images[for_sets], return_inverse=True)
    number = torch.arange(sets)[:, None]
    key = hash_keys(seed, string_key("null-channels/set"), string_key(layer.name), number)
    chosen = permutations(key[:, 0], len(images))[:, :patches]
    # of each chosen image one of its patches, which stand together once sorted by image
    together = torch.argsort(of_image, stable=True)
    held = torch.bincount(of_image)
    first = held.cumsum(0) - held
    pick = (uniform(hash_keys(key, 1), images[chosen]) * held[chosen]).to(torch.int64)
    rows = for_sets[together[first[chosen] + pick]]
    labels, pool = layer.pool_labels, layer.pool
    notes = []
    overlap = sets * patches / len(images)
    if overlap > _CROWDED:
        notes.append(
            f"the {sets} random sets of {layer.name} share {len(images)} images, {overlap:.1f} "
            "sets an image: they are not independent, and intervals over them are too narrow"
        )
    return NullChannels(
        rows, pool[rows], None if labels is None else labels[rows], hash_keys(key[:, 0], 2),
        pool[for_pool], tuple(notes),
    )  # fmt: skip
