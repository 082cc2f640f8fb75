"""MILAN (Hernandez et al. 2022, arXiv 2201.11114) and MAIA: masked pictures of the top images.

============================  ==============================================================
``{layer}/images.npy``        uint8 (units, k, 3, S, S)
``{layer}/masks.npy``         uint8 (units, k, 1, S, S), positive where the unit is active
``{layer}/activations.csv``   (units, k), best first
``{layer}/ids.csv``           (units, k) positions of the images in their data set
``{layer}/thresholds.csv``    (units,), read by MAIA alone
============================  ==============================================================

Layout as MILAN's dissection writes it and MAIA reads it (from ``PATH/{model}/imagenet/``). MILAN's
masks mark units above the 99 % quantile; ours mark the patch of the site, and the threshold is
the least activation shown. Pictures are in the files, so that importing needs an encoder only:
a patch is the picture cut to the box around its mask.

>>> from psi_engine import adapters
>>> contents = adapters.read("exemplars", "exemplars/resnet152/imagenet")
>>> contents.exemplars["layer4"].images.shape       # (units, k, 3, S, S)
>>> from psi_engine.adapters.into_run import import_files
>>> run = import_files("exemplars", ["exemplars/resnet152/imagenet"],
...                    encoder="open_clip:ViT-B-32", out="runs/exemplars")
>>> from psi_engine.adapters.from_run import export_run
>>> export_run("exemplars", "runs/resnet50", "exemplars/resnet50/imagenet", top_k=15)
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from psi_engine.adapters.contents import (
    Contents,
    Exemplars,
    ReadOptions,
    TopExamples,
    file_stem,
    new_files,
    only_name,
)
from psi_engine.adapters.safe_files import read_csv, read_npy, write_csv
from psi_engine.adapters.subset import read_channels, write_channels
from psi_engine.artifacts import atomic
from psi_engine.errors import InputError

WHAT = "folders {layer}/ with images.npy, masks.npy, activations.csv and ids.csv"

_FILES = ("images.npy", "masks.npy", "activations.csv", "ids.csv", "thresholds.csv")


def read(paths: Sequence[Path], options: ReadOptions) -> Contents:
    """Read every layer in a folder, or the one layer that a folder is; arrays stay on the disk.

    Raises
    ------
    InputError
        A file is missing or broken, or the four of a layer do not fit.
    """
    if len(paths) != 1:
        raise InputError("one folder of exemplars is read at a time", got=len(paths), expected=WHAT)
    root = paths[0]
    if (root / "images.npy").exists():
        folders = [root]
    else:
        folders = sorted(path.parent for path in root.glob("*/images.npy"))
    if not folders:
        raise InputError("no exemplars in the folder", got=str(root), expected=WHAT)
    examples, exemplars = [], {}
    names = only_name(options.layer, [folder.name for folder in folders])
    for folder, name in zip(folders, names, strict=True):
        found, pictures = _layer(folder, name)
        examples.append(found)
        exemplars[name] = pictures
    return Contents(
        examples=tuple(examples),
        exemplars=exemplars,
        notes=("a patch is the exemplar's picture cut to the box around its mask",),
    )


def _layer(folder: Path, name: str) -> tuple[TopExamples, Exemplars]:
    images = read_npy(folder / "images.npy", "pictures (units, k, 3, S, S)", 5)
    masks = read_npy(folder / "masks.npy", "masks (units, k, 1, S, S)", 5)
    values = read_csv(folder / "activations.csv", "activations (units, k)")
    ids = read_csv(folder / "ids.csv", "image ids (units, k)")
    side = images.shape[3:]
    expected = images.shape[:2]
    shapes = {"masks": masks.shape[:2], "activations": values.shape, "ids": ids.shape}
    for what, shape in shapes.items():
        if shape != expected:
            raise InputError(
                f"{what} and images of {name} do not fit",
                got=f"{shape} and {expected}",
                expected="the same units and exemplars",
                fix="take the files of one dissection",
            )
    if images.dtype != np.uint8 or images.shape[2] != 3 or masks.shape[2:] != (1, *side):
        raise InputError(
            f"pictures and masks of {name} have other shapes than MILAN writes",
            got=f"images {images.dtype} {images.shape}, masks {masks.shape}",
            expected="uint8 (units, k, 3, S, S) and (units, k, 1, S, S)",
        )
    if (ids != np.floor(ids)).any() or ids.min() < 0:
        raise InputError(
            f"{name}/ids.csv does not hold image ids",
            got=float(ids.min()) if ids.min() < 0 else "fractions",
            expected="whole numbers from 0 on",
        )
    channels = read_channels(folder.parent, name, len(ids))
    found = TopExamples(
        name,
        torch.from_numpy(ids.astype(np.int64)),
        torch.from_numpy(values.astype(np.float32)),
        channels=channels,
    )
    if not np.array_equal(found.image_ids.numpy(), ids):
        raise InputError(
            f"the exemplars of {name} are not in the order of their activations",
            expected="the best first",
            fix="take the files of one dissection",
        )
    return found, Exemplars(images, masks)


def write(contents: Contents, folder: Path) -> list[Path]:
    """Write each layer that has pictures, as MILAN's ``TopImagesDataset`` and MAIA read it.

    Raises
    ------
    InputError
        No pictures, empty slots, or a file is there.
    """
    contents.require("exemplars", "examples", "exemplars")
    known = {part.layer: part for part in contents.examples}
    for layer in contents.exemplars:
        part = known[layer]
        if part.values is None or bool((part.image_ids < 0).any()):
            raise InputError(
                f"{layer} cannot be written as exemplars",
                got="channels with empty slots" if part.values is not None else "no activations",
                expected="an image and its activation in every slot",
                fix="write fewer exemplars per channel with --top-k",
            )
    written = new_files(
        folder, [f"{file_stem(layer)}/{name}" for layer in contents.exemplars for name in _FILES]
    )
    for layer, pictures in contents.exemplars.items():
        part, home = known[layer], folder / layer
        for name, array in (("images.npy", pictures.images), ("masks.npy", pictures.masks)):
            _copy(home / name, array)
        assert part.values is not None
        write_csv(home / "activations.csv", part.values.numpy(), "%.9g")
        write_csv(home / "ids.csv", part.image_ids.numpy(), "%i")
        write_csv(home / "thresholds.csv", part.values.amin(1).numpy(), "%.9g")
    layers = [known[layer] for layer in contents.exemplars]
    return [*written, *write_channels(folder, layers)]


def _copy(path: Path, array: np.ndarray) -> None:
    """Write an array unit by unit: it may be larger than the memory."""
    with atomic(path) as temporary:
        target = np.lib.format.open_memmap(temporary, mode="w+", dtype=np.uint8, shape=array.shape)
        for unit, rows in enumerate(array):
            target[unit] = rows
        target.flush()
        del target
