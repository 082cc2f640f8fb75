"""What a run holds, in the form that adapters write."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from psi_engine.adapters.contents import Contents, Description, Exemplars, TopExamples
from psi_engine.adapters.registry import write
from psi_engine.artifacts import Run
from psi_engine.data import batches
from psi_engine.embedding import refuse_unreadable
from psi_engine.errors import InputError
from psi_engine.inputs import reopen_images
from psi_engine.patches import site_boxes
from psi_engine.stored import StoredLayer, StoredRun, load_stored
from psi_engine.types import Progress

MILAN_EXEMPLARS = 15
"""Exemplars a unit of MILAN's and MAIA's, where nothing else is asked for."""


def from_run(
    run: Run | str | Path, *, layers: Sequence[str] = (), top_k: int | None = None
) -> Contents:
    """Take top images, embeddings and names out of a finished run.

    Parameters
    ----------
    run : Run or path
    layers : sequence of str
        Which; empty = all.
    top_k : int, optional
        The best so many of each channel; None = all that every channel has.

    Raises
    ------
    RunFolderError
        The run is unfinished, or has no images (it was scored from embeddings).
    InputError
        No such layer, several sites of one image in a channel, fewer than ``top_k`` examples.
    """
    stored = load_stored(run.path if isinstance(run, Run) else run)
    chosen = _chosen(stored, layers)
    examples = [_examples(layer, top_k) for layer in chosen]
    if dead := [len(part.numbers) for part in examples if bool((part.image_ids < 0).any())]:
        count = min(int((part.image_ids >= 0).sum(1).min()) for part in examples)
        raise InputError(
            "some channels have fewer examples than asked for",
            got=f"{count} in a channel of one of {len(dead)} layers",
            expected=f"{examples[0].image_ids.shape[1]} in each",
            fix=f"give --top-k {max(count, 4)}" if count >= 4 else "export other layers",
        )
    return Contents(
        examples=tuple(examples),
        embedded={
            layer.name: layer.embeddings[:, : part.image_ids.shape[1]].clone()
            for layer, part in zip(chosen, examples, strict=True)
        },
        descriptions=_descriptions(stored.run, [layer.name for layer in chosen]),
        encoder=stored.run.manifest["encoder"]["name"],
        images=max(layer.sites.images for layer in chosen),
    )


def export_run(
    tool: str,
    run: Run | str | Path,
    folder: str | Path,
    *,
    layers: Sequence[str] = (),
    top_k: int | None = None,
    progress: Progress | None = None,
) -> list[Path]:
    """Write a run as a tool's files; for ``exemplars`` its images are read again.

    Returns
    -------
    list of Path
        The files written.

    Raises
    ------
    InputError
        As :func:`from_run` and :func:`psi_engine.adapters.write`; for ``exemplars``, the images
        are not what they were.
    """
    if tool != "exemplars":
        return write(tool, from_run(run, layers=layers, top_k=top_k), folder)
    contents = from_run(run, layers=layers, top_k=top_k or MILAN_EXEMPLARS)
    stored = load_stored(run.path if isinstance(run, Run) else run)
    with tempfile.TemporaryDirectory(dir=_existing(Path(folder))) as room:
        pictures = {
            part.layer: _pictures(stored, part, Path(room) / str(number), progress)
            for number, part in enumerate(contents.examples)
        }
        return write(tool, replace(contents, exemplars=pictures), folder)


def _existing(folder: Path) -> Path:
    """The nearest folder that is there: pictures go to the disk they will stay on."""
    return next(path for path in (folder.absolute(), *folder.absolute().parents) if path.is_dir())


def _chosen(stored: StoredRun, layers: Sequence[str]) -> list[StoredLayer]:
    if unknown := [name for name in layers if name not in stored.layers]:
        raise InputError(
            "no such layer in the run", got=unknown[0], expected=", ".join(stored.layers)
        )
    return [layer for name, layer in stored.layers.items() if not layers or name in layers]


def _examples(layer: StoredLayer, top_k: int | None) -> TopExamples:
    sites = layer.sites
    filled = int((sites.image_ids >= 0).sum(1).max())
    kept = slice(0, filled if top_k is None else top_k)
    ids, grid = sites.image_ids[:, kept], sites.shape.grid
    flat = sites.u[:, kept].to(torch.int64) * grid[1] + sites.v[:, kept]
    flat = torch.where(ids < 0, 0, flat)
    ordered = ids.sort(1).values
    if bool(((ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] >= 0)).any()):
        raise InputError(
            f"channels of {layer.name} have several sites in one image",
            expected="one site an image, as other tools keep them",
            fix="run with --sites per-image",
        )
    return TopExamples(
        layer.name, ids, sites.values[:, kept], flat, grid, sites.channels, sites.stats
    )


def _descriptions(run: Run, layers: Sequence[str]) -> tuple[Description, ...]:
    """Name each channel after its largest cluster; channels without a name stay out."""
    clusters = run.clusters
    clusters = clusters.filter(pc.is_in(clusters["layer"], pa.array(layers)))
    keys = [("layer", "ascending"), ("channel", "ascending"), ("size", "descending")]
    keys.append(("cluster", "ascending"))
    found: dict[tuple[str, int], Description] = {}
    for row in clusters.sort_by(keys).to_pylist():
        if row["concepts"]:
            best = row["concepts"][0]
            found.setdefault(
                (row["layer"], row["channel"]),
                Description(row["layer"], row["channel"], best["concept"], best["similarity"]),
            )
    return tuple(sorted(found.values(), key=lambda d: (layers.index(d.layer), d.unit)))


def _pictures(
    stored: StoredRun, part: TopExamples, room: Path, progress: Progress | None
) -> Exemplars:
    """The model's views of the examples and masks of their patches, in arrays on the disk."""
    inputs = reopen_images(stored.run)
    preprocess, side = inputs.model.preprocess, stored.image_size
    shape = part.image_ids.shape
    room.mkdir()
    images = _mapped(room / "images.npy", (*shape, 3, side, side))
    masks = _mapped(room / "masks.npy", (*shape, 1, side, side))
    boxes = _boxes(stored, part).numpy()
    order = torch.argsort(part.image_ids.flatten(), stable=True)
    flat = part.image_ids.flatten()[order]
    skipped: dict[int, str] = {}
    loader = batches(
        inputs.source, preprocess, batch_size=64, indices=flat.unique_consecutive(), skipped=skipped
    )
    done = 0
    for batch in loader:
        refuse_unreadable(inputs.source, skipped)
        for image, view in zip(batch.image_ids, batch.views, strict=True):
            first, last = (int(torch.searchsorted(flat, image, right=end)) for end in (False, True))
            for slot in order[first:last].tolist():
                unit, rank = divmod(slot, shape[1])
                x0, y0, x1, y1 = boxes[unit, rank]
                images[unit, rank] = view.numpy()
                masks[unit, rank, 0, y0:y1, x0:x1] = 1
        done += len(batch.image_ids)
        if progress is not None:
            progress(f"pictures of {part.layer}", done, len(flat.unique()))
    refuse_unreadable(inputs.source, skipped)
    return Exemplars(images, masks)


def _mapped(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    return np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=shape)


def _boxes(stored: StoredRun, part: TopExamples) -> Tensor:
    layer = stored.layers[part.layer]
    kept = slice(0, part.image_ids.shape[1])
    top = layer.sites.top
    return site_boxes(top.u[:, kept], top.v[:, kept], layer.field, stored.image_size)
