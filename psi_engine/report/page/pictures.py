"""Thumbnails of a run's patches, one sheet per channel, and the images they come from.

Every image is read once. Its patches go, uncompressed, into a scratch file that is gone in the
end; sheets are made from that, and made again with fewer patches where they would not fit.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from psi_engine.artifacts import full_disk_told
from psi_engine.data import ImageSource, Preprocess, batches
from psi_engine.types import Progress

COLUMNS = 10
"""Thumbnails in a row of a sheet."""

HOST_SIDE = 192
SHEETS, HOSTS = "sprites", "hosts"

_LARGE, _SMALL, _MANY = 96, 64, 40_000
# Side of a thumbnail, and the number of patches from which on it is the small one.
_QUALITY, _EFFORT = 72, 2
# WebP effort 4 takes twice as long for 3 % less.
_SHEETS_SHARE = 0.7
# Of the bound, for sheets; hosts get what is left.
_BLANK = 128


class Pictures(NamedTuple):
    """Where a run's images are: the source and what its model saw of them."""

    source: ImageSource
    preprocess: Preprocess
    batch_size: int = 64
    workers: int = 0


class Patches(NamedTuple):
    """Patches of all channels, in the order they are shown, channel after channel.

    channel : int64 (n,), the channel's row. cluster : int64 (n,), its group's place among the
    channel's, −1 = none. place : int64 (n,), the place within the group, best first.
    image : int64 (n,). box : int64 (n, 4), x0 y0 x1 y1.
    """

    channel: NDArray[np.int64]
    cluster: NDArray[np.int64]
    place: NDArray[np.int64]
    image: NDArray[np.int64]
    box: NDArray[np.int64]


class Drawn(NamedTuple):
    """What was drawn.

    side : of a thumbnail, in pixels. host_side : of a host image. image_side : of the picture
    that boxes are in. slots : int64 (n,), each patch's place in its channel's sheet, −1 = left
    out. hosts : images that are there. notes : what was left out and why.
    """

    side: int
    host_side: int
    image_side: int
    slots: NDArray[np.int64]
    hosts: frozenset[int]
    notes: tuple[str, ...]


def draw(
    folder: Path,
    patches: Patches,
    pictures: Pictures,
    bound: int,
    progress: Progress | None = None,
) -> Drawn:
    """Write ``sprites/ROW.webp`` and ``hosts/IMAGE.webp`` under a bound of bytes.

    Parameters
    ----------
    folder : Path
        Of the report that is being made.
    patches : Patches
    pictures : Pictures
    bound : int
        Bytes that sheets and host images may have together. Sheets come first, with fewer
        patches per group where seven tenths of the bound do not hold them; then images, those of
        each group's best patches first.

    Raises
    ------
    DataError, CorruptDataError
        As :func:`psi_engine.data.batches`.
    """
    largest = int((patches.box[:, 2:] - patches.box[:, :2]).max(initial=1))
    side = min(_SMALL if len(patches.image) > _MANY else _LARGE, largest)
    image_side = pictures.preprocess.image_size
    host_side = min(HOST_SIDE, image_side)
    for name in (SHEETS, HOSTS):
        (folder / name).mkdir(parents=True)
    scratch = folder / "thumbnails.tmp"
    shape = (max(1, len(patches.image)), side, side, 3)
    with full_disk_told(scratch):
        thumbnails = np.lib.format.open_memmap(scratch, "w+", dtype=np.uint8, shape=shape)
        skipped, sizes = _read(folder, patches, pictures, thumbnails, host_side, progress)
        there = ~np.isin(patches.image, [*skipped])
        slots, total, notes = _sheets(folder, patches, thumbnails, there, bound, progress)
        del thumbnails
        scratch.unlink()
    hosts = _keep_hosts(folder, patches, sizes, bound - total)
    if len(hosts) < len(sizes):
        notes.append(
            f"{len(sizes) - len(hosts):,} of {len(sizes):,} host images left out to keep the "
            "report small; a larger --max-size keeps more"
        )
    keys = pictures.source.keys
    notes += [f"{keys[image]} cannot be read any more: {why}" for image, why in skipped.items()]
    return Drawn(side, host_side, image_side, slots, hosts, tuple(notes))


def _read(
    folder: Path,
    patches: Patches,
    pictures: Pictures,
    thumbnails: NDArray[np.uint8],
    host_side: int,
    progress: Progress | None,
) -> tuple[dict[int, str], dict[int, int]]:
    """Cut every patch and shrink every image; unreadable images with reasons, sizes of files."""
    order = np.argsort(patches.image, kind="stable")
    images, starts = np.unique(patches.image[order], return_index=True)
    skipped: dict[int, str] = {}
    sizes: dict[int, int] = {}
    if not len(images):
        return skipped, sizes  # no channel has patches
    members = dict(zip(images.tolist(), np.split(order, starts[1:]), strict=True))
    for batch in batches(
        pictures.source,
        pictures.preprocess,
        batch_size=pictures.batch_size,
        workers=pictures.workers,
        indices=torch.from_numpy(images),
        skipped=skipped,
    ):
        for image, view in zip(batch.image_ids.tolist(), batch.views, strict=True):
            if view.dtype != torch.uint8:
                skipped[image] = "a tensor of the data set, not a picture"
                continue
            whole = Image.fromarray(view.permute(1, 2, 0).contiguous().numpy())
            for row in members[image]:
                thumbnails[row] = _thumbnail(whole, patches.box[row], thumbnails.shape[1])
            small = whole.resize((host_side, host_side), Image.Resampling.HAMMING)
            path = _host_path(folder, image)
            _save(small, path)
            sizes[image] = path.stat().st_size
        if progress is not None:
            progress("reading images", len(sizes) + len(skipped), len(images))
    return skipped, sizes


def _thumbnail(whole: Image.Image, box: NDArray[np.int64], side: int) -> NDArray[np.uint8]:
    """A patch as a square; one that is cut off at the image's edge keeps its shape."""
    x0, y0, x1, y1 = box.tolist()
    longest = max(x1 - x0, y1 - y0)
    size = tuple(max(1, round(side * length / longest)) for length in (x1 - x0, y1 - y0))
    small = whole.resize(size, Image.Resampling.HAMMING, box=(x0, y0, x1, y1))
    tile = np.full((side, side, 3), _BLANK, np.uint8)
    left, top = (side - size[0]) // 2, (side - size[1]) // 2
    tile[top : top + size[1], left : left + size[0]] = np.asarray(small)
    return tile


def _sheets(
    folder: Path,
    patches: Patches,
    thumbnails: NDArray[np.uint8],
    there: NDArray[np.bool_],
    bound: int,
    progress: Progress | None,
) -> tuple[NDArray[np.int64], int, list[str]]:
    """Write one sheet per channel; slots of the patches, bytes written, what was left out."""
    most = int(patches.place.max(initial=0)) + 1
    rows = np.unique(patches.channel)
    bounds = np.searchsorted(patches.channel, np.stack([rows, rows + 1]))
    kept = most
    while True:
        shown = there & (patches.place < kept)
        slots = np.full(len(patches.channel), -1, np.int64)
        total = 0
        for number, row in enumerate(rows.tolist()):
            start, end = bounds[:, number].tolist()
            mine = start + np.flatnonzero(shown[start:end])
            slots[mine] = np.arange(len(mine))
            if len(mine):
                path = folder / SHEETS / f"{row}.webp"
                _save(_sheet(thumbnails, mine), path)
                total += path.stat().st_size
            if progress is not None:
                progress("drawing thumbnails", number + 1, len(rows))
        room = _SHEETS_SHARE * bound
        if total <= room or kept == 1:
            break
        kept = max(1, min(kept - 1, int(kept * room / total)))
    if kept == most:
        return slots, total, []
    note = f"only the best {kept} patches of each group are shown, to keep the report small"
    return slots, total, [f"{note}; a larger --max-size shows more"]


def _sheet(thumbnails: NDArray[np.uint8], rows: Sequence[int] | NDArray[np.int64]) -> Image.Image:
    side = thumbnails.shape[1]
    height = -(-len(rows) // COLUMNS)
    sheet = np.full((height * side, COLUMNS * side, 3), _BLANK, np.uint8)
    for slot, row in enumerate(rows):
        top, left = (side * x for x in divmod(slot, COLUMNS))
        sheet[top : top + side, left : left + side] = thumbnails[row]
    return Image.fromarray(sheet)


def _keep_hosts(folder: Path, patches: Patches, sizes: dict[int, int], room: int) -> frozenset[int]:
    """Remove the images that do not fit: of the patches that come last in their groups first."""
    best: dict[int, int] = {}
    for image, place in zip(patches.image.tolist(), patches.place.tolist(), strict=True):
        best[image] = min(place, best.get(image, place))
    kept = set()
    for image in sorted(sizes, key=lambda image: (best[image], image)):
        if sizes[image] <= room:
            room -= sizes[image]
            kept.add(image)
        else:
            room = 0  # the first that does not fit ends it: no later one squeezes in
            _host_path(folder, image).unlink()
    return frozenset(kept)


def _host_path(folder: Path, image: int) -> Path:
    return folder / HOSTS / f"{image}.webp"


def _save(picture: Image.Image, path: Path) -> None:
    picture.save(path, "WEBP", quality=_QUALITY, method=_EFFORT)
