"""Embed every distinct crop once, into a memory-mapped array that survives a kill.

The crops are sorted by (image, box). They are cut from the model's own view of the image (the
resized, centre-cropped uint8 picture the network saw), resized to the encoder's input on the
device, and encoded in blocks of one fixed size, so that neither loading nor resuming nor the
number of ranks changes the bits of a row. A block's rows are on the disk before they are counted
as done; ranks share the blocks and write files of their own, which rank 0 puts together. Rows that
other software, another device or another number of threads left are not mixed in.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from psi_engine.artifacts import atomic, fingerprint, full_disk_told, write_json, write_table
from psi_engine.data import ImageSource, Preprocess, batches
from psi_engine.distributed import ALONE, World
from psi_engine.encoders import Encoder
from psi_engine.errors import CorruptDataError
from psi_engine.patches import crop_and_resize
from psi_engine.provenance import differences, made_here
from psi_engine.ranges import Ranges
from psi_engine.types import Boxes, Progress

BLOCK = 256
"""Crops encoded together and written down together."""

EMBEDDINGS = "embeddings/embeddings.npy"
BOXES = "embeddings/boxes.parquet"
"""Which crop each row is: image_id, x0, y0, x1, y1."""
PARTS = "embeddings/parts"
"""Folder of the rows that are done while the stage runs."""
KEY = "embeddings/key.json"
"""What the array was made for, where no manifest says it."""

_COPIED = 1 << 24


def embed_boxes(
    folder: Path,
    key: str,
    source: ImageSource,
    preprocess: Preprocess,
    boxes: Boxes,
    encoder: Encoder,
    *,
    device: torch.device,
    batch_size: int,
    workers: int = 0,
    progress: Progress | None = None,
    world: World = ALONE,
    notes: list[str] | None = None,
) -> Path:
    """Embed the boxes into ``folder``/embeddings/embeddings.npy, float32 (n, dim), unit rows.

    Parameters
    ----------
    key : str
        Of the stage. Rows done under the same key by the same software, device and number of
        threads are kept, those of another key dropped.
    boxes : Boxes
        Sorted by image id.
    batch_size, workers : int
        Of image loading.
    world : World
        Ranks that share the work, in one folder; each sees the whole array on return.
    notes : list, optional
        On rank 0 filled with what was done before and is done again, and why.

    Returns
    -------
    Path
        Of the array; open it with ``numpy.load(path, mmap_mode="r")``.

    Raises
    ------
    CorruptDataError
        When an image that was readable while mining no longer is.
    DiskFullError
        There is no room; rows that are done stay.
    """
    shape = (len(boxes.image_ids), encoder.dim)
    blocks = -(-shape[0] // BLOCK)
    made = made_here(device)
    path, parts = folder / EMBEDDINGS, folder / PARTS / fingerprint(made)
    done, told = world.from_main(lambda: (_rows_done(parts, key, shape), _others(parts, key, made)))
    if notes is not None and world.main:
        notes += told
    todo = Ranges.of([(0, blocks)]) - Ranges.of(
        (first // BLOCK, -(-(first + rows) // BLOCK)) for first, rows in done
    )
    finished = blocks - len(todo)
    for start, stop in todo.slice(world.share(len(todo))):
        first, end = start * BLOCK, min(stop * BLOCK, shape[0])
        part = _Part(parts, first, key, shape, made)
        wanted = Boxes(boxes.image_ids[first:end].contiguous(), boxes.xyxy[first:end])
        for crops in _blocks(source, preprocess, wanted, encoder, device, batch_size, workers):
            part.append(encoder.encode_images(crops).cpu().numpy())
            finished += world.size  # the others are about as far
            if progress is not None:
                progress("embedding", min(finished * BLOCK, shape[0]), shape[0])
        if part.rows < end - first:
            raise CorruptDataError("rows are missing", got=part.rows, expected=end - first)
    world.wait()
    world.from_main(lambda: _put_together(path, parts, key, shape))
    return path


def embed_once(
    folder: Path,
    key: str,
    source: ImageSource,
    preprocess: Preprocess,
    boxes: Boxes,
    encoder: Encoder,
    *,
    device: torch.device,
    batch_size: int,
    workers: int = 0,
    progress: Progress | None = None,
) -> Path:
    """Embed as :func:`embed_boxes` into a folder without a manifest, which keeps its own key.

    An array that stands under the same key is returned as it is; the parts it was put together
    from are removed.
    """
    path, record = folder / EMBEDDINGS, folder / KEY
    kept = json.loads(record.read_text(encoding="utf-8")) if record.is_file() else {}
    if not path.is_file() or kept.get("key") != key:
        record.unlink(missing_ok=True)
        embed_boxes(
            folder, key, source, preprocess, boxes, encoder,
            device=device, batch_size=batch_size, workers=workers, progress=progress,
        )  # fmt: skip
        write_json(record, {"key": key})
    shutil.rmtree(folder / PARTS, ignore_errors=True)
    return path


def write_boxes(folder: Path, boxes: Boxes) -> None:
    """Write which crop each row of the array is, as :data:`BOXES`."""
    corners = zip(("x0", "y0", "x1", "y1"), boxes.xyxy.numpy().T, strict=True)
    index = pa.table({"image_id": boxes.image_ids.numpy(), **dict(corners)})
    write_table(folder / BOXES, index)


@dataclass
class _Part:
    """Rows from ``first`` on, in a file of their own, and beside it how many are done."""

    folder: Path
    first: int
    key: str
    shape: tuple[int, int]
    made: Mapping[str, str]
    rows: int = 0

    @property
    def data(self) -> Path:
        return self.folder / f"{self.first:012d}.f32"

    def append(self, rows: np.ndarray) -> None:
        """Write rows at the end, then the new count: what a kill leaves beyond it is nothing."""
        note = self.data.with_suffix(".json")
        self.folder.mkdir(parents=True, exist_ok=True)
        if not self.rows:
            note.unlink(missing_ok=True)
        with full_disk_told(self.data), open(self.data, "ab" if self.rows else "wb") as file:
            file.write(rows.astype("<f4").tobytes())
            file.flush()
            os.fsync(file.fileno())
        self.rows += len(rows)
        facts = {"key": self.key, "shape": self.shape, "rows": self.rows, "made": self.made}
        write_json(note, facts)


def _rows_done(parts: Path, key: str, shape: tuple[int, int]) -> list[tuple[int, int]]:
    """(first, rows) of each finished part of this work, in order; what else is there goes."""
    found = []
    for data in sorted(parts.glob("*.f32")):
        held = _facts(data)
        if held.get("key") == key and held["shape"] == list(shape):
            found.append((int(data.stem), int(held["rows"])))
        else:
            _remove(data)
    return found


def _others(parts: Path, key: str, made: Mapping[str, str]) -> list[str]:
    """What was left by another maker, in a folder beside; what it did for another key goes.

    The rows of this key stay until the stage is done: back where they were made they count.
    """
    found: dict[Path, list[dict[str, Any]]] = {}
    for data in sorted(parts.parent.rglob("*.f32")):
        held = _facts(data)
        if data.parent == parts:
            continue
        if data.parent == parts.parent or held.get("key") != key:
            _remove(data)
        else:
            found.setdefault(data.parent, []).append(held)
    return [
        f"{sum(x['rows'] for x in held)} rows that were embedded before are embedded again: made "
        f"by {differences(held[0]['made'], made)}"
        for held in found.values()
    ]


def _facts(data: Path) -> dict[str, Any]:
    note = data.with_suffix(".json")
    return json.loads(note.read_text(encoding="utf-8")) if note.exists() else {}


def _remove(data: Path) -> None:
    data.with_suffix(".json").unlink(missing_ok=True)
    data.unlink()


def _put_together(path: Path, parts: Path, key: str, shape: tuple[int, int]) -> None:
    header = {"descr": "<f4", "fortran_order": False, "shape": shape}
    with atomic(path) as temporary, open(temporary, "wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        end = 0
        for first, rows in _rows_done(parts, key, shape):
            if first != end:
                raise CorruptDataError("rows are missing", got=f"{first} after {end}")
            with open(parts / f"{first:012d}.f32", "rb") as part:
                left = rows * shape[1] * 4  # a kill may have left half a block beyond
                while left and (piece := part.read(min(left, _COPIED))):
                    file.write(piece)
                    left -= len(piece)
            end = first + (0 if left else rows)
        if end != shape[0]:
            raise CorruptDataError("rows are missing", got=end, expected=shape[0])


def _blocks(
    source: ImageSource,
    preprocess: Preprocess,
    boxes: Boxes,
    encoder: Encoder,
    device: torch.device,
    batch_size: int,
    workers: int,
) -> Iterator[Tensor]:
    """Yield the crops, float32 (≤ BLOCK, 3, size, size) in [0, 1]."""
    image_ids, xyxy = boxes
    indices = torch.unique_consecutive(image_ids)
    skipped: dict[int, str] = {}
    pending: list[Tensor] = []
    held = cursor = 0
    for batch in batches(
        source,
        preprocess,
        batch_size=batch_size,
        workers=workers,
        indices=indices,
        skipped=skipped,
        device=device,
    ):
        refuse_unreadable(source, skipped)
        end = cursor + int(torch.searchsorted(image_ids[cursor:], batch.image_ids[-1], right=True))
        which = torch.searchsorted(batch.image_ids, image_ids[cursor:end])
        # Never more than a block of crops at once, however many boxes the images have.
        for rows in _cuts(cursor, end, BLOCK - held):
            pending.append(
                crop_and_resize(
                    batch.views,
                    which[rows.start - cursor : rows.stop - cursor].to(device),
                    xyxy[rows].to(device),
                    encoder.image_size,
                    encoder.interpolation,
                )
            )
            held += rows.stop - rows.start
            if held == BLOCK:
                yield torch.cat(pending)
                pending, held = [], 0
        cursor = end
    refuse_unreadable(source, skipped)
    if held:
        yield torch.cat(pending)


def _cuts(start: int, end: int, first: int) -> Iterator[slice]:
    """Cut rows: the first so many, then a block each."""
    while start < end:
        stop = min(end, start + first)
        yield slice(start, stop)
        start, first = stop, BLOCK


def refuse_unreadable(source: ImageSource, skipped: dict[int, str]) -> None:
    """Raise when a mined image can no longer be read: its sites would be missing."""
    for image, reason in skipped.items():
        raise CorruptDataError(
            "an image that was readable while mining no longer is",
            got=f"{source.keys[image]}: {reason}",
            fix="restore the data set, then run the same command again",
        )
