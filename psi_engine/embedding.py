"""Embed every distinct crop once, into a memory-mapped array that survives a kill.

The crops are sorted by (image, box). They are cut from the model's own view of the image (the
resized, centre-cropped uint8 picture the network saw), resized to the encoder's input on the
device, and encoded in blocks of one fixed size, so that neither loading nor resuming changes the
bits of a row. After each block the rows are flushed and their number written down.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from psi_engine.artifacts import write_json
from psi_engine.data import ImageSource, Preprocess, batches
from psi_engine.encoders import Encoder
from psi_engine.errors import CorruptDataError
from psi_engine.patches import crop_and_resize
from psi_engine.types import Boxes, Progress

BLOCK = 256
"""Crops encoded together and written down together."""

EMBEDDINGS = "embeddings/embeddings.npy"
POSITION = "embeddings/position.json"


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
) -> Path:
    """Embed the boxes into ``folder``/embeddings/embeddings.npy, float32 (n, dim), unit rows.

    Parameters
    ----------
    key : str
        Of the stage. A partial file of the same key is continued, of another key overwritten.
    boxes : Boxes
        Sorted by image id.
    batch_size, workers : int
        Of image loading.

    Returns
    -------
    Path
        Of the array; open it with ``numpy.load(path, mmap_mode="r")``.

    Raises
    ------
    CorruptDataError
        When an image that was readable while mining no longer is.
    """
    path, position = folder / EMBEDDINGS, folder / POSITION
    shape = (len(boxes.image_ids), encoder.dim)
    done = _rows_done(path, position, key, shape)
    path.parent.mkdir(parents=True, exist_ok=True)
    if not done:  # first: a position of other work must not outlive the rows it counts
        position.unlink(missing_ok=True)
    mode = "r+" if done else "w+"
    array = np.lib.format.open_memmap(path, mode, dtype=np.float32, shape=shape)
    for crops in _blocks(source, preprocess, boxes, encoder, done, device, batch_size, workers):
        rows = encoder.encode_images(crops).cpu().numpy()
        array[done : done + len(rows)] = rows
        array.flush()
        done += len(rows)
        write_json(position, {"key": key, "rows": done})
        if progress is not None:
            progress("embedding", done, shape[0])
    if done < shape[0]:
        raise CorruptDataError("rows are missing", got=done, expected=shape[0])
    return path


def _rows_done(path: Path, position: Path, key: str, shape: tuple[int, int]) -> int:
    if not (path.exists() and position.exists()):
        return 0
    state = json.loads(position.read_text(encoding="utf-8"))
    whole = state["key"] == key and np.load(path, mmap_mode="r").shape == shape
    return int(state["rows"]) if whole else 0


def _blocks(
    source: ImageSource,
    preprocess: Preprocess,
    boxes: Boxes,
    encoder: Encoder,
    start: int,
    device: torch.device,
    batch_size: int,
    workers: int,
) -> Iterator[Tensor]:
    """Yield the crops from row ``start`` on, float32 (≤ BLOCK, 3, size, size) in [0, 1]."""
    image_ids, xyxy = boxes.image_ids[start:].contiguous(), boxes.xyxy[start:]
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
    ):
        refuse_unreadable(source, skipped)
        end = cursor + int(torch.searchsorted(image_ids[cursor:], batch.image_ids[-1], right=True))
        which = torch.searchsorted(batch.image_ids, image_ids[cursor:end])
        pending.append(
            crop_and_resize(
                batch.views.to(device),
                which.to(device),
                xyxy[cursor:end].to(device),
                encoder.image_size,
                encoder.interpolation,
            )
        )
        held, cursor = held + end - cursor, end
        if held >= BLOCK:
            crops = torch.cat(pending)
            whole = held - held % BLOCK
            yield from crops[:whole].split(BLOCK)
            pending, held = [crops[whole:]], held - whole
    refuse_unreadable(source, skipped)
    if held:
        yield torch.cat(pending)


def refuse_unreadable(source: ImageSource, skipped: dict[int, str]) -> None:
    """Raise when a mined image can no longer be read: its sites would be missing."""
    for image, reason in skipped.items():
        raise CorruptDataError(
            "an image that was readable while mining no longer is",
            got=f"{source.keys[image]}: {reason}",
            fix="restore the data set, then run the same command again",
        )
