"""Pictures or embeddings that came with top examples, numbered as images of their own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from PIL import Image

from psi_engine.adapters.contents import Contents, Exemplars
from psi_engine.data import ImageSource
from psi_engine.data.source import fingerprint_of
from psi_engine.errors import InputError
from psi_engine.standins import NumberedImages

_MARGIN = 0.1  # of the mask's larger side, on each side


class ExemplarPictures(ImageSource):
    """Every exemplar of every unit as an image: the picture cut to the box around its mask.

    Parameters
    ----------
    exemplars : mapping of layer name to Exemplars
        Image ids count through layers, units and ranks, in this order.

    Notes
    -----
    The box is a square around the mask with a margin of a tenth, moved inward at the border; an
    empty mask leaves the whole picture. No labels come with exemplars.
    """

    name = "exemplars"
    class_names = None

    def __init__(self, exemplars: Mapping[str, Exemplars]) -> None:
        self._parts = list(exemplars.items())
        keys: list[str] = []
        for layer, part in self._parts:
            units, count = part.images.shape[:2]
            keys += [f"{layer}/{unit}/{rank}" for unit in range(units) for rank in range(count)]
        self.keys: Sequence[str] = keys
        self.fingerprint = fingerprint_of(
            [self.name, *(f"{n} {p.images.shape}" for n, p in self._parts)]
        )

    @property
    def labels(self) -> None:
        """Unknown."""
        return None

    def item(self, index: int) -> Image.Image:
        """One exemplar, cut."""
        for _, part in self._parts:
            units, count = part.images.shape[:2]
            if index < units * count:
                unit, rank = divmod(index, count)
                picture = np.ascontiguousarray(part.images[unit, rank].transpose(1, 2, 0))
                return Image.fromarray(picture).crop(_box(np.asarray(part.masks[unit, rank, 0])))
            index -= units * count
        raise IndexError(index)


def _box(mask: np.ndarray) -> tuple[int, int, int, int]:
    height, width = mask.shape
    rows, columns = np.nonzero(mask.any(1))[0], np.nonzero(mask.any(0))[0]
    if not len(rows):
        return 0, 0, width, height
    tall, wide = rows[-1] + 1 - rows[0], columns[-1] + 1 - columns[0]
    side = min(height, width, round(max(tall, wide) * (1 + 2 * _MARGIN)))
    y = min(max(0, int(rows[0] + rows[-1] + 1 - side) // 2), height - side)
    x = min(max(0, int(columns[0] + columns[-1] + 1 - side) // 2), width - side)
    return x, y, x + side, y + side


def as_pictures(contents: Contents) -> tuple[Contents, ExemplarPictures]:
    """Number the exemplars anew, each an image of its own, and return these images."""
    return _renumbered(contents), ExemplarPictures(contents.exemplars)


class NumberedPatches(NumberedImages):
    """Embedded examples, each an image of its own; no other image of the data set is known."""


def as_patches(contents: Contents) -> tuple[Contents, NumberedPatches]:
    """Number embedded examples anew: one image has an embedding for each of its patches.

    Raises
    ------
    InputError
        The embeddings of layers have different sizes.
    """
    parts = [part for part in contents.examples if part.layer in contents.embedded]
    rows = [contents.embedded[part.layer] for part in parts]
    if len(dims := {x.shape[2] for x in rows}) > 1:
        raise InputError(
            "layers are embedded by different encoders",
            got=", ".join(f"{p.layer}: {x.shape[2]}" for p, x in zip(parts, rows, strict=True)),
            expected="one size of embeddings",
            fix=f"import the {len(dims)} kinds apart",
        )
    keys = [
        f"{part.layer}/{channel}/{rank}: image {image}"
        for part in parts
        for channel, ids in zip(part.numbers.tolist(), part.image_ids.tolist(), strict=True)
        for rank, image in enumerate(ids)
    ]
    flat = torch.cat([x.flatten(0, 1) for x in rows])
    numbered = replace(_renumbered(replace(contents, examples=tuple(parts))), embedded={})
    return replace(numbered, image_embeddings=flat), NumberedPatches(keys)


def _renumbered(contents: Contents) -> Contents:
    examples, start = [], 0
    for part in contents.examples:
        units, count = part.image_ids.shape
        ids = start + torch.arange(units * count).reshape(units, count)
        examples.append(replace(part, image_ids=torch.where(part.image_ids < 0, -1, ids)))
        start += units * count
    return replace(contents, examples=tuple(examples))
