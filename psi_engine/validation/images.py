"""Every image once through the classifier and once through the encoder, kept in the folder.

Both are written block by block with the number of finished rows beside them, under a key made
of everything they depend on: a repeat reads them, an interrupted run continues.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from psi_engine.artifacts import fingerprint, write_json
from psi_engine.data import ImageSource, batches
from psi_engine.embedding import embed_once
from psi_engine.encoders import Encoder
from psi_engine.encoders.forward import exact_float32
from psi_engine.errors import DataError, ModelError
from psi_engine.hooks import evaluating
from psi_engine.mining import MICRO_BATCH
from psi_engine.models import LoadedModel
from psi_engine.types import Boxes, Progress

LOGITS = "logits/logits.npy"
POSITION = "logits/position.json"

_SAVE_EVERY = 16
# Micro-batches between two saved positions.
_LOADED_TOGETHER = 64


class Images(NamedTuple):
    """What is known of the images that could be read.

    ids : int64 (images,), positions in the source. logits : float32 (images, outputs).
    embeddings : float32 (images, dim). labels : int64 (images,), −1 = unknown.
    """

    ids: Tensor
    logits: Tensor
    embeddings: Tensor
    labels: Tensor


def see_images(
    folder: Path,
    source: ImageSource,
    model: LoadedModel,
    encoder: Encoder,
    device: torch.device,
    progress: Progress | None = None,
) -> Images:
    """Run both networks over the images, or read what an earlier run kept.

    Raises
    ------
    DataError
        The images have no labels.
    ModelError
        The model's output is not one row of logits per image.
    CorruptDataError
        Too many unreadable images; a few are left out.
    """
    labels = labels_of(source)
    logits = _logits(folder, source, model, device, progress)
    ids = torch.nonzero(torch.isfinite(logits).all(1))[:, 0]
    side = model.preprocess.image_size
    whole = Boxes(ids, torch.tensor([0, 0, side, side]).expand(len(ids), 4).contiguous())
    facts = (encoder.fingerprint, model.preprocess, source.fingerprint, device.type, len(ids))
    path = embed_once(
        folder,
        fingerprint("whole images", *facts),
        source,
        model.preprocess,
        whole,
        encoder,
        device=device,
        batch_size=_LOADED_TOGETHER,
        progress=progress,
    )
    return Images(ids, logits[ids], torch.from_numpy(np.load(path)), labels[ids])


def labels_of(source: ImageSource) -> Tensor:
    """Labels of the images: int64 (images,), −1 = unknown; refused where there are none."""
    if source.labels is None:
        raise DataError(
            f"the images of {source.name} have no labels",
            expected="a class for each image: ground truth is made of classes",
            fix="give a folder per class, or Parquet with a `label` column",
        )
    return source.labels


def _logits(
    folder: Path,
    source: ImageSource,
    model: LoadedModel,
    device: torch.device,
    progress: Progress | None,
) -> Tensor:
    """Logits of every image, float32 (images, outputs); NaN where it could not be read."""
    path, position = folder / LOGITS, folder / POSITION
    facts = (model.fingerprint, model.preprocess, source.fingerprint, device.type)
    key = fingerprint("logits", *facts)
    state = json.loads(position.read_text(encoding="utf-8")) if position.exists() else {}
    done = state["images"] if state.get("key") == key and path.exists() else 0
    path.parent.mkdir(parents=True, exist_ok=True)
    array = _kept(path) if done else None
    if array is None:
        done = 0
    if done == len(source):
        return torch.from_numpy(np.array(array))
    if not done:
        position.unlink(missing_ok=True)
    for number, (image_ids, rows) in enumerate(_forward(source, model, device, done)):
        if array is None:
            shape = (len(source), rows.shape[1])
            array = np.lib.format.open_memmap(path, "w+", dtype=np.float32, shape=shape)
            array[:] = np.nan
        array[image_ids.numpy()] = rows.cpu().numpy()
        done = int(image_ids[-1]) + 1
        if number % _SAVE_EVERY == _SAVE_EVERY - 1:
            array.flush()
            write_json(position, {"key": key, "images": done})
        if progress is not None:
            progress("classifying", done, len(source))
    if array is None:
        raise DataError(f"none of the {len(source)} images of {source.name} can be read")
    array.flush()
    write_json(position, {"key": key, "images": len(source)})
    return torch.from_numpy(np.load(path))


def _kept(path: Path) -> np.memmap[Any, np.dtype[np.float32]] | None:
    """The array an earlier run left, or None where the file is cut short."""
    try:
        np.lib.format.open_memmap(path, "r")  # "r+" would lengthen a short file
        return np.lib.format.open_memmap(path, "r+")
    except (OSError, ValueError):
        return None


def _forward(
    source: ImageSource, model: LoadedModel, device: torch.device, start: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Image ids and logits, one padded micro-batch after the other."""
    size = MICRO_BATCH.get(device.type, MICRO_BATCH["cpu"])
    loader = batches(
        source,
        model.preprocess,
        batch_size=size,
        indices=torch.arange(start, len(source)),
        skipped={},
    )
    module = model.module.to(device)
    with evaluating(module), exact_float32(device), torch.inference_mode():
        for batch in loader:
            x = model.preprocess.normalise(batch.views.to(device))
            x = torch.cat([x, x[:1].expand(size - len(x), *x.shape[1:])])
            rows = module(x.contiguous(memory_format=torch.channels_last))
            if not isinstance(rows, Tensor) or rows.ndim != 2 or len(rows) != size:
                raise ModelError(
                    f"{model.name} does not give logits",
                    got=tuple(rows.shape) if isinstance(rows, Tensor) else type(rows).__name__,
                    expected="a tensor (images, classes)",
                    fix="give a classifier",
                )
            yield batch.image_ids, rows[: len(batch.image_ids)].float()
