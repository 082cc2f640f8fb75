"""What another tool's files hold, in one form for all tools, checked when it is made.

Every adapter reads into :class:`Contents` and writes from it; which of its parts are there
decides what can be done with them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import numpy as np
import torch
from torch import Tensor

from psi_engine.errors import InputError
from psi_engine.types import ActivationStats

_LEAST = 4  # fewer patches have no clusters to test


@dataclass(frozen=True)
class TopExamples:
    """The images that excite each channel of a layer most.

    Rows are put in order: best first, empty slots last, ties as they come.

    Parameters
    ----------
    layer : str
    image_ids : Tensor, int64 (channels, k)
        Positions of the images in their data set; −1 in empty slots, which come last.
    values : Tensor, float32 (channels, k), optional
        Activations, finite but in empty slots, which hold NaN.
    positions : Tensor, int64 (channels, k), optional
        Where in the layer's map: row · columns + column. None = the whole image.
    grid : tuple of int, optional
        (rows, columns) of the map that positions count through.
    channels : Tensor, int64 (channels,), optional
        Indices in the layer; None = all from 0 on.
    stats : ActivationStats, optional
        Over every site of every image, where the file tells.

    Attributes
    ----------
    order : Tensor, int64 (channels, k)
        Which column of the given rows each sorted one was: what else the file lists per slot is
        gathered by it.

    Raises
    ------
    InputError
        A name of the layer that leads out of a folder, shapes that do not fit, fewer than 4
        slots, ids below −1, an image twice in a channel, values that are not finite, positions
        outside the grid.
    """

    layer: str
    image_ids: Tensor
    values: Tensor | None = None
    positions: Tensor | None = None
    grid: tuple[int, int] | None = None
    channels: Tensor | None = None
    stats: ActivationStats | None = None
    order: Tensor = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        require_safe(self.layer)
        ids = self.image_ids
        where = f"the examples of {self.layer}"
        if ids.ndim != 2 or ids.shape[1] < _LEAST or not len(ids):
            raise InputError(
                f"{where} are not a table of image ids",
                got=tuple(ids.shape),
                expected=f"(channels, k) with at least {_LEAST} images a channel",
                fix="collect more examples per channel",
            )
        for name in ("values", "positions"):
            part = getattr(self, name)
            if part is not None and part.shape != ids.shape:
                raise InputError(
                    f"{name} and image ids of {self.layer} do not fit",
                    got=f"{tuple(part.shape)} and {tuple(ids.shape)}",
                    expected="equal shapes",
                    fix="take files of one and the same collection",
                )
        if bool((ids < -1).any()):
            raise InputError(
                f"{where} hold ids below −1", got=int(ids.min()), expected="image ids from 0 on"
            )
        if self.channels is None:
            object.__setattr__(self, "channels", torch.arange(len(ids)))
        self._check_values()
        self._check_positions()
        self._sort()
        self._check_distinct()

    def _check_values(self) -> None:
        if self.values is None:
            return
        broken = ~torch.isfinite(self.values) & (self.image_ids >= 0)
        if bool(broken.any()):
            channel, rank = torch.nonzero(broken)[0].tolist()
            raise InputError(
                f"an activation of {self.layer} is not finite",
                got=f"{float(self.values[channel, rank])} at channel {channel}, rank {rank}",
                expected="finite activations",
                fix="find out why the network puts out NaN or infinity, and collect again",
            )

    def _check_positions(self) -> None:
        if self.positions is None:
            return
        inside = self.positions[self.image_ids >= 0]
        most = None if self.grid is None else self.grid[0] * self.grid[1]
        if bool((inside < 0).any()) or (most is not None and bool((inside >= most).any())):
            raise InputError(
                f"positions of {self.layer} lie outside its map",
                got=f"{int(inside.min())} to {int(inside.max())}",
                expected="0 or more" if most is None else f"0 to {most - 1} for {self.grid}",
                fix="give the grid of the layer at the image size of the collection",
            )

    def _sort(self) -> None:
        """Put empty slots last, the others by value; ties and rows without values stay."""
        if self.values is None:
            keys = (self.image_ids < 0).to(torch.float32)
        else:
            keys = torch.where(self.image_ids < 0, torch.inf, -self.values.to(torch.float32))
        order = torch.sort(keys, dim=1, stable=True).indices
        object.__setattr__(self, "order", order)
        for name in ("image_ids", "values", "positions"):
            if (part := getattr(self, name)) is not None:
                object.__setattr__(self, name, part.gather(1, order))
        if self.values is not None:
            blank = torch.where(self.image_ids < 0, torch.nan, self.values.to(torch.float32))
            object.__setattr__(self, "values", blank + 0.0)  # −0 counts as +0

    def _check_distinct(self) -> None:
        ids = self.image_ids.sort(1).values
        twice = (ids[:, 1:] == ids[:, :-1]) & (ids[:, 1:] >= 0)
        if bool(twice.any()):
            channel, rank = torch.nonzero(twice)[0].tolist()
            raise InputError(
                f"an image stands twice among the examples of a channel of {self.layer}",
                got=f"image {int(ids[channel, rank])} in channel {channel}",
                expected="each image once a channel",
                fix="collect one example per image: copies look like a cluster",
            )

    @property
    def numbers(self) -> Tensor:
        """Indices of the rows in the layer, int64 (channels,)."""
        assert self.channels is not None
        return self.channels

    def require_inside(self, images: int) -> None:
        """Raise where an id does not exist in a data set of so many images."""
        if bool((outside := self.image_ids >= images).any()):
            channel, rank = torch.nonzero(outside)[0].tolist()
            raise InputError(
                f"an image id of {self.layer} is not in the data",
                got=f"id {int(self.image_ids[channel, rank])} for {images} images",
                expected=f"ids from 0 to {images - 1}",
                fix="give the --data that the tool used, in the same order, without --max-images",
            )


@dataclass(frozen=True)
class Exemplars:
    """Pictures of the top examples with masks, as arrays that may lie on the disk.

    images : uint8 (channels, k, 3, S, S). masks : uint8 or bool (channels, k, 1, S, S), positive
    where the channel is active.
    """

    images: np.ndarray
    masks: np.ndarray


@dataclass(frozen=True)
class Description:
    """What a unit is said to show: one row of CLIP-Dissect's table."""

    layer: str
    unit: int
    description: str
    similarity: float


@dataclass(frozen=True)
class Contents:
    """What a tool's files hold.

    examples : top images, a layer each. embedded : embeddings of top examples by layer, floating
    (channels, k, dim), in the order of the examples. activations : pooled activations of every
    image by layer, float32 (images, channels). image_embeddings : float32 (images, dim), of every
    image. text_embeddings : float32 (concepts, dim), with their names in ``concepts``. exemplars :
    pictures by layer. descriptions : names of units. images : in the data set, where that is
    known. notes : what a reader must know.

    Raises
    ------
    InputError
        Two sets of examples of one layer, or a layer's name that leads out of a folder.
    """

    examples: tuple[TopExamples, ...] = ()
    embedded: Mapping[str, Tensor] = field(default_factory=dict)
    activations: Mapping[str, Tensor] = field(default_factory=dict)
    image_embeddings: Tensor | None = None
    text_embeddings: Tensor | None = None
    concepts: tuple[str, ...] | None = None
    exemplars: Mapping[str, Exemplars] = field(default_factory=dict)
    descriptions: tuple[Description, ...] = ()
    encoder: str | None = None
    """Name of what embedded, where it is known."""
    images: int | None = None
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        names = [part.layer for part in self.examples]
        if twice := [name for name in names if names.count(name) > 1]:
            raise InputError(
                "two sets of examples are of one layer",
                got=twice[0],
                expected="one collection a layer",
                fix="give the files of one collection",
            )
        for name in (*self.layers, *(row.layer for row in self.descriptions)):
            require_safe(name)

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the layers, in the order they were found."""
        names = [part.layer for part in self.examples]
        names += [*self.embedded, *self.activations, *self.exemplars]
        return tuple(dict.fromkeys(names))

    def require(self, tool: str, *parts: str) -> None:
        """Raise when a part that a tool's files need is not there."""
        for name in parts:
            value = getattr(self, name)
            if value is None or len(value) == 0:
                held = [f.name for f in fields(self) if _is_there(getattr(self, f.name))]
                raise InputError(
                    f"there are no {name.replace('_', ' ')} to write for {tool}",
                    got=", ".join(held) or "nothing",
                    fix=f"give contents with {name}",
                )


def _is_there(value: Any) -> bool:
    return value is not None and (not hasattr(value, "__len__") or len(value) > 0)


@dataclass(frozen=True)
class ReadOptions:
    """What files do not say of themselves; each adapter takes what it needs.

    grid : (rows, columns) of the layer's map. images : in the data set. top_k : examples kept per
    channel where a file holds every activation. drop_missing : leave out slots with id −1 instead
    of refusing the file. layer : name of the only layer, in place of the file's.
    """

    grid: tuple[int, int] | None = None
    images: int | None = None
    top_k: int = 50
    drop_missing: bool = False
    layer: str | None = None


def only_name(name: str | None, found: Sequence[str]) -> list[str]:
    """Return the layers found in files, the only one of them under the name that was given.

    Raises
    ------
    InputError
        A name is given, and there are several layers.
    """
    if name is None:
        return list(found)
    if len(found) > 1:
        raise InputError(
            "one name was given for several layers",
            got=f"--layer {name} for {', '.join(found)}",
            expected="the files of one layer",
            fix="leave --layer out, or name the files of one layer",
        )
    return [name] * len(found)


def require_safe(layer: str) -> None:
    """Raise where a layer's name, which may come from a file, would lead out of a folder."""
    ways = PurePosixPath(layer), PureWindowsPath(layer)
    if "\0" in layer or any(way.anchor or ".." in way.parts for way in ways):
        raise InputError(
            "a layer's name leads out of the folder",
            got=repr(layer),
            expected="a name without .., a leading / or NUL",
            fix="rename the layer in the file; do not use files whose origin you do not trust",
        )


def file_stem(layer: str) -> str:
    """Return a layer's name, which is to be part of a file's name.

    Raises
    ------
    InputError
        It holds a slash or backslash: a tool would not find the file again.
    """
    require_safe(layer)
    if "/" in layer or "\\" in layer:
        raise InputError(
            "the layer's name cannot be part of a file's name",
            got=repr(layer),
            expected="a name without slashes",
            fix="rename the layer, or leave it out with --layer",
        )
    return layer


def new_files(folder: Path, names: list[str]) -> list[Path]:
    """Return the paths of files to write, all in the folder; refuse to overwrite any.

    Raises
    ------
    InputError
        One of them is there, or would be outside of the folder.
    """
    paths = [folder / name for name in names]
    home = folder.resolve()
    if outside := [name for name in names if not (folder / name).resolve().is_relative_to(home)]:
        raise InputError(
            "a file would be written outside of the folder",
            got=repr(outside[0]),
            expected=f"a place in {folder}",
            fix="rename the layer, and remove links that lead out of the folder",
        )
    if there := [str(path) for path in paths if path.exists()]:
        raise InputError(
            "a file would be overwritten",
            got=there[0],
            expected="a folder without it",
            fix="give another --out, or remove it",
        )
    return paths
