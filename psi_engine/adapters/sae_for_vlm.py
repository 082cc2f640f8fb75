"""sae-for-vlm (Pach et al. 2025, arXiv 2504.02821): activations in parts, and top images.

==========================  =================================================================
``…_part{n}.pt``            (images of the part, neurons); parts in the order of n
``hai_indices_{k}.npy``     (neurons, k) ids of the highest activating images, best *last*
an embeddings ``.pt``       (images, dim) of all images by another encoder, for MS
==========================  =================================================================

Layout as the project's scripts write and read it: in the folder of parts every ``.pt`` and
``.pth`` whose name does not begin with ``all`` is one to them. Here a part's name must end in
``_part{n}``; whatever else is in the folder is not read, and is listed in the notes. The list names
no layer: without parts beside it the layer is the folder's name, or ``--layer``.

>>> from psi_engine import adapters
>>> contents = adapters.read("sae-for-vlm", "activations_dir", "embeddings.pt")
>>> from psi_engine.adapters.sae_for_vlm import monosemanticity
>>> monosemanticity(contents)                       # their MS of every neuron, (neurons,)
>>> from psi_engine.adapters.into_run import import_files
>>> run = import_files("sae-for-vlm", ["activations_dir", "embeddings.pt"], out="runs/sae")
>>> adapters.write("sae-for-vlm", adapters.from_run("runs/resnet50"), "exported")
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from psi_engine.adapters.contents import Contents, ReadOptions, TopExamples, file_stem, new_files
from psi_engine.adapters.safe_files import (
    read_npy,
    read_pt,
    require_finite,
    write_npy,
    write_pt,
)
from psi_engine.adapters.subset import read_channels, write_channels
from psi_engine.baselines.monosemanticity import MonosemanticitySums
from psi_engine.errors import InputError

WHAT = "folder of …_part{n}.pt and hai_indices_{k}.npy, and an embeddings .pt"

_PART = re.compile(r"_part(\d+)\.pth?$")
_PART_ROWS = 65536
_BATCH = 4096


def read(paths: Sequence[Path], options: ReadOptions) -> Contents:
    """Read folders of parts and top images, and image embeddings where a ``.pt`` is named.

    Of a folder only parts and lists are read; the notes name the others. Top images are taken
    from the activations where both are there, and must agree with them.

    Raises
    ------
    InputError
        A file is broken, parts are missing or do not fit, ids are beyond the images.
    """
    files = [inner for path in paths for inner in _files(path)]
    parts = sorted((p for p in files if _PART.search(p.name)), key=lambda p: (_number(p), p.name))
    lists = [path for path in files if path.suffix == ".npy"]
    others = [path for path in files if path not in parts and path not in lists]
    if len(others) > 1 or len(lists) > 1 or not files:
        raise InputError(
            "not the files of sae-for-vlm", got=", ".join(p.name for p in files), expected=WHAT
        )
    layer = options.layer or _layer(parts, files)
    activations = _activations(parts)
    ids = _ids(lists[0]) if lists else None
    embeddings = read_pt(others[0], "image embeddings (images, dim)") if others else None
    if embeddings is not None:
        require_finite(others[0], embeddings, "embeddings")
        if activations is not None and len(activations) != len(embeddings):
            raise InputError(
                "activations and embeddings are of different images",
                got=f"{len(activations)} and {len(embeddings)} rows",
                expected="one row an image in both",
                fix="give the embeddings of the same data set (activations of one vector an image)",
            )
    examples = []
    if ids is not None:
        channels = read_channels(lists[0].parent, layer, len(ids))
        part = TopExamples(layer, ids.flip(1), channels=channels)  # best last in the file
        count = next((len(x) for x in (activations, embeddings) if x is not None), None)
        if count is not None:
            part.require_inside(count)
        examples = [_with_values(part, activations)]
    return Contents(
        examples=tuple(examples),
        activations={} if activations is None else {layer: activations},
        image_embeddings=embeddings,
        notes=("one activation an image: each patch is a whole image", *_left_out(paths, files)),
    )


def _files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    named = [p for p in sorted(path.iterdir()) if p.is_file() and not p.name.startswith("all")]
    return [p for p in named if _PART.search(p.name) or p.name.startswith("hai_indices_")]


def _left_out(paths: Sequence[Path], files: Sequence[Path]) -> list[str]:
    """Name the tensors and arrays of the folders that are neither part nor list."""
    inside = [p for path in paths if path.is_dir() for p in sorted(path.iterdir())]
    other = [p.name for p in inside if p.suffix in (".pt", ".pth", ".npy") and p not in files]
    return [f"in the folder but not read: {', '.join(other)}"] if other else []


def _number(path: Path) -> int:
    found = _PART.search(path.name)
    assert found is not None
    return int(found[1])


def _layer(parts: Sequence[Path], files: Sequence[Path]) -> str:
    if not parts:
        return files[0].parent.name or "neurons"
    stem = _PART.sub("", parts[0].name)
    return stem.rpartition("_activations_")[2] or "neurons"


def _activations(parts: Sequence[Path]) -> Tensor | None:
    if not parts:
        return None
    numbers = [_number(path) for path in parts]
    if numbers != list(range(numbers[0], numbers[0] + len(parts))) or numbers[0] > 1:
        raise InputError(
            "parts of the activations are missing or doubled",
            got=f"numbers {numbers}",
            expected="every number from 1 on, once",
            fix="put all parts of one collection into the folder, and no other",
        )
    tensors = []
    for path in parts:
        tensors.append(read_pt(path, "activations (images, neurons)"))
        require_finite(path, tensors[-1], "activations")
        if tensors[-1].shape[1] != tensors[0].shape[1]:
            raise InputError(
                f"{path.name} does not fit the parts before it",
                got=f"{tensors[-1].shape[1]} neurons",
                expected=f"{tensors[0].shape[1]}",
            )
    return torch.cat(tensors)


def _ids(path: Path) -> Tensor:
    array = read_npy(path, "image ids (neurons, k)", 2, "ids")
    if array.size and array.min() < 0:
        raise InputError(
            f"{path.name} holds negative ids", got=int(array.min()), expected="ids from 0 on"
        )
    return torch.from_numpy(array.astype(np.int64))


def _with_values(part: TopExamples, activations: Tensor | None) -> TopExamples:
    """Look the values up, and refuse lists that are not the highest of these activations."""
    if activations is None:
        return part
    if len(part.image_ids) != activations.shape[1]:
        raise InputError(
            "top images and activations are of different neurons",
            got=f"{len(part.image_ids)} and {activations.shape[1]}",
            expected="one row a neuron",
        )
    values = activations.mT.gather(1, part.image_ids)
    best = activations.mT.topk(part.image_ids.shape[1], dim=1).values
    wrong = (values.sort(1, descending=True).values != best).any(1)
    if bool(wrong.any()):
        raise InputError(
            "the top images are not the highest of the activations",
            got=f"{int(wrong.sum())} neurons differ, the first {int(wrong.nonzero()[0])}",
            expected="hai_indices of the same parts",
            fix="remove hai_indices_….npy: the activations are enough",
        )
    return TopExamples(part.layer, part.image_ids, values, channels=part.channels)


def monosemanticity(contents: Contents) -> dict[str, Tensor]:
    """Return their MS of every neuron over all images, float64 (neurons,) by layer.

    See :class:`psi_engine.baselines.monosemanticity.MonosemanticitySums`.

    Raises
    ------
    InputError
        Activations or image embeddings are not there.
    """
    contents.require("the monosemanticity score", "activations", "image_embeddings")
    embeddings = contents.image_embeddings
    assert embeddings is not None
    found = {}
    for layer, values in contents.activations.items():
        sums = MonosemanticitySums(values.amin(0), values.amax(0), embeddings.shape[1])
        for start in range(0, len(values), _BATCH):
            batch = slice(start, start + _BATCH)
            sums.add(embeddings[batch], values[batch])
        found[layer] = sums.score()
    return found


def write(contents: Contents, folder: Path) -> list[Path]:
    """Write ``hai_indices_{k}.npy``, the activations in parts, and embeddings, where known.

    A run knows no activations but those of its top images, so that it writes the list alone.

    Raises
    ------
    InputError
        Several layers, nothing to write, empty slots, or a file is there.
    """
    if len(contents.layers) != 1:
        raise InputError(
            "sae-for-vlm keeps one layer a folder",
            got=", ".join(contents.layers) or "none",
            expected="one layer",
            fix="name one layer with --layer",
        )
    layer = contents.layers[0]
    examples = [part for part in contents.examples if part.layer == layer]
    if any(bool((part.image_ids < 0).any()) for part in examples):
        raise InputError(
            f"{layer} cannot be written for sae-for-vlm",
            got="channels with empty slots",
            expected="an image in every slot",
            fix="write fewer examples per channel with --top-k",
        )
    rows = contents.activations.get(layer)
    cut = [] if rows is None else list(rows.split(_PART_ROWS))
    names = [f"data_all_activations_{file_stem(layer)}_part{n}.pt" for n in range(1, len(cut) + 1)]
    lists = [f"hai_indices_{part.image_ids.shape[1]}.npy" for part in examples]
    beside = ["all_embeddings.pt"] if contents.image_embeddings is not None else []
    if not names and not lists:
        contents.require("sae-for-vlm", "examples")
    paths = new_files(folder, [*names, *lists, *beside])
    for path, tensor in zip(paths, cut, strict=False):
        write_pt(path, tensor)
    for path, part in zip(paths[len(cut) :], examples, strict=False):
        write_npy(path, part.image_ids.flip(1).numpy())
    if contents.image_embeddings is not None:
        write_pt(paths[-1], contents.image_embeddings)
    return [*paths, *write_channels(folder, examples)]
