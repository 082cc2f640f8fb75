"""zennit-crp (Achtibat et al. 2023, Nature Machine Intelligence 5) and PURE, which stores the same.

``ActMax_{sum|max}_{normed|unnormed}/{layer}_{data,rel,rf}.npy``, each (K, channels): image id,
activation, and the flat index row · columns + column of the most active unit. ``RelMax_…`` holds
relevances in place of activations. Layout as zennit-crp 0.6.0 writes and reads it.

>>> from psi_engine import adapters
>>> contents = adapters.read("crp", "FeatureVisualization/ActMax_max_unnormed", grid=(14, 14))
>>> contents.examples[0].positions.max()            # below 14 · 14
>>> from psi_engine.adapters.into_run import import_files
>>> run = import_files(                             # the model gives H, W and receptive fields
...     "crp", ["FeatureVisualization/ActMax_max_unnormed"], model="resnet50",
...     data="images", encoder="open_clip:ViT-B-32", out="runs/crp",
... )
>>> adapters.write("crp", adapters.from_run("runs/resnet50"), "exported")
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from psi_engine.adapters.contents import (
    Contents,
    ReadOptions,
    TopExamples,
    file_stem,
    new_files,
    only_name,
)
from psi_engine.adapters.safe_files import read_npy, write_npy
from psi_engine.adapters.subset import read_channels, write_channels
from psi_engine.errors import InputError

WHAT = "folder ActMax_… with {layer}_data.npy, _rel.npy and _rf.npy"

FOLDER = "ActMax_max_unnormed"
"""Where written files go: ours are maxima over the map, as they are."""


def read(paths: Sequence[Path], options: ReadOptions) -> Contents:
    """Read every layer of an ``ActMax_…`` or ``RelMax_…`` folder, or of the folder above it.

    Raises
    ------
    InputError
        No or several such folders, a missing or broken file, arrays that do not fit.
    """
    if len(paths) != 1:
        raise InputError("one folder of zennit-crp is read at a time", got=len(paths))
    folder = _folder(paths[0])
    layers = [path.name.removesuffix("_data.npy") for path in sorted(folder.glob("*_data.npy"))]
    if not layers:
        raise InputError("no layer in the folder", got=str(folder), expected=WHAT)
    names = only_name(options.layer, layers)
    examples = [_layer(folder, *pair, options) for pair in zip(layers, names, strict=True)]
    notes = ["the values are relevances, not activations"] if "RelMax" in folder.name else []
    return Contents(examples=tuple(examples), notes=tuple(notes))


def _folder(path: Path) -> Path:
    if any(path.glob("*_data.npy")):
        return path
    found = sorted(inner for inner in path.glob("ActMax_*") if inner.is_dir())
    if len(found) != 1:
        raise InputError(
            "which collection of zennit-crp is meant is not clear",
            got=", ".join(inner.name for inner in found) or f"none in {path}",
            expected="one folder ActMax_…",
            fix="name the folder itself",
        )
    return found[0]


def _layer(folder: Path, layer: str, name: str, options: ReadOptions) -> TopExamples:
    data = read_npy(folder / f"{layer}_data.npy", "image ids (K, channels)", 2, "ids")
    rel = read_npy(folder / f"{layer}_rel.npy", "activations (K, channels)", 2)
    rf = read_npy(folder / f"{layer}_rf.npy", "unit indices (K, channels)", 2, "ids")
    if not data.shape == rel.shape == rf.shape:
        raise InputError(
            f"the files of {layer} do not fit each other",
            got=f"data {data.shape}, rel {rel.shape}, rf {rf.shape}",
            expected="one shape (K, channels)",
            fix="collect the layer again",
        )
    if (data < 0).any():
        raise InputError(
            f"{layer}_data.npy holds negative ids", got=int(data.min()), expected="0 or more"
        )
    ids, values, positions = (
        torch.from_numpy(np.ascontiguousarray(x.T.astype(kind)))
        for x, kind in ((data, np.int64), (rel, np.float32), (rf, np.int64))
    )
    channels = read_channels(folder, layer, len(ids))
    return TopExamples(name, ids, values, positions, options.grid, channels)


def write(contents: Contents, folder: Path) -> list[Path]:
    """Write ``ActMax_max_unnormed/`` as ``FeatureVisualization(path=folder)`` reads it.

    Raises
    ------
    InputError
        No examples, empty slots, no activations or positions, or a file would be overwritten.
    """
    contents.require("zennit-crp", "examples")
    for part in contents.examples:
        if part.values is None or bool((part.image_ids < 0).any()):
            raise InputError(
                f"{part.layer} cannot be written for zennit-crp",
                got="channels with empty slots" if part.values is not None else "no activations",
                expected="an image and its activation in every slot",
                fix="write fewer examples per channel with --top-k",
            )
    target = folder / FOLDER
    stems = [file_stem(part.layer) for part in contents.examples]
    names = [f"{stem}_{x}.npy" for stem in stems for x in ("data", "rel", "rf")]
    paths = new_files(target, names)
    for part, start in zip(contents.examples, range(0, len(paths), 3), strict=True):
        assert part.values is not None
        flat = torch.zeros_like(part.image_ids) if part.positions is None else part.positions
        for path, rows in zip(paths[start:], (part.image_ids, part.values, flat), strict=False):
            write_npy(path, rows.mT.numpy())
    return [*paths, *write_channels(target, contents.examples)]
