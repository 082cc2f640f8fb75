"""SemanticLens (Dreyer et al. 2025, arXiv 2501.05398): its activation cache and concept database.

============================================  =====================================================
``{aggregator}-{K}-{layer}.safetensors``      ``activations`` bfloat16 and ``sample_ids`` int64,
                                              both (channels, K), and metadata
``concept_db-….safetensors``                  one (channels, K, dim) tensor per layer
============================================  =====================================================

Layout as semanticlens 0.2.1 writes and reads it. Its buffers start at 0 with id −1: a channel
that is never positive keeps ids of −1, and its concept database then holds the *last* image. Such
files are refused, or read without those slots. Activations are one number an image (mean or
maximum over the map), so that every patch is a whole image.

>>> from psi_engine import adapters
>>> contents = adapters.read("semanticlens", "cache/ActivationComponentVisualizer/data/net")
>>> contents.examples[0].image_ids.shape            # (channels, K)
>>> from psi_engine.adapters.into_run import import_files
>>> run = import_files(
...     "semanticlens", ["cache/ActivationComponentVisualizer/data/net"],
...     data="images", encoder="open_clip:ViT-B-32", out="runs/lens",
... )
>>> adapters.write("semanticlens", adapters.from_run("runs/resnet50"), "exported")
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from psi_engine.adapters.contents import (
    Contents,
    ReadOptions,
    TopExamples,
    file_stem,
    new_files,
    only_name,
)
from psi_engine.adapters.safe_files import read_safetensors
from psi_engine.adapters.subset import read_channels, write_channels
from psi_engine.artifacts import write_tensors
from psi_engine.errors import InputError

WHAT = "activation cache and concept_db (.safetensors)"

_CACHE = {"activations", "sample_ids"}
_LONGEST = 255  # bytes of a file's name
_AGGREGATORS = {"map": "aggregate_conv_max", "tokens": "aggregate_transformer_max"}


def read(paths: Sequence[Path], options: ReadOptions) -> Contents:
    """Read caches and concept databases, files or folders of them.

    Raises
    ------
    InputError
        A file is broken, holds something else, or ids of −1 that were not to be left out; two
        caches or databases of one layer; a name given to several layers.
    """
    examples: list[TopExamples] = []
    embedded: dict[str, Tensor] = {}
    missing: list[str] = []
    for path in _files(paths):
        tensors, notes = read_safetensors(path)
        if tensors.keys() >= _CACHE:
            part, count = _examples(path, tensors, notes, options)
            examples.append(part)
            missing += [f"{count} slots of {part.layer} without an image left out"] * (count > 0)
        elif tensors and all(x.ndim == 3 and x.is_floating_point() for x in tensors.values()):
            _require_new(path, tensors, embedded)
            embedded |= {name: x.to(torch.float32) for name, x in tensors.items()}
        else:
            held = ", ".join(f"{name} {tuple(x.shape)}" for name, x in tensors.items())
            raise InputError(
                f"{path.name} is neither a cache nor a concept database of SemanticLens",
                got=held or "no tensors",
                expected="activations and sample_ids, or (channels, K, dim) tensors",
            )
    if options.layer is not None:
        embedded = _renamed(options.layer, examples, embedded)
    _require_fit(examples, embedded)
    for part in examples:
        if (rows := embedded.get(part.layer)) is not None:  # a database lists as its cache does
            order = part.order[:, :, None].expand_as(rows)
            embedded[part.layer] = rows.gather(1, order)
    return Contents(
        examples=tuple(examples), embedded=embedded, notes=(*_notes(examples), *missing)
    )


def _files(paths: Sequence[Path]) -> list[Path]:
    found: list[Path] = []
    for path in paths:
        inside = sorted(path.rglob("*.safetensors")) if path.is_dir() else [path]
        if not inside:
            raise InputError("no .safetensors in the folder", got=str(path), expected=WHAT)
        found += inside
    return found


def _examples(
    path: Path, tensors: dict[str, Tensor], notes: dict[str, str], options: ReadOptions
) -> tuple[TopExamples, int]:
    values, ids = tensors["activations"], tensors["sample_ids"]
    layer = options.layer or notes.get("layer_name") or path.stem.split("-", 2)[-1]
    if not values.is_floating_point() or ids.is_floating_point() or ids.is_complex():
        raise InputError(
            f"{path.name} has other dtypes than SemanticLens writes",
            got=f"activations {values.dtype}, sample_ids {ids.dtype}",
            expected="bfloat16 and int64",
        )
    ids = ids.to(torch.int64)
    empty = ids < 0
    if bool(empty.any()) and not options.drop_missing:
        rows = torch.nonzero(empty.flatten(1).any(1)).flatten().tolist()
        raise InputError(
            f"{path.name} holds sample ids of −1",
            got=f"{len(rows)} channels, the first {rows[:5]}",
            expected="an image in every slot",
            fix="these channels have fewer positive activations than samples: leave the slots out "
            "with --drop-missing, or mine with psi-engine run",
        )
    channels = read_channels(path.parent, layer, len(ids))
    part = TopExamples(layer, ids.clamp(min=-1), values.to(torch.float32), channels=channels)
    return part, int(empty.sum())


def _require_new(path: Path, tensors: dict[str, Tensor], embedded: dict[str, Tensor]) -> None:
    if twice := sorted(tensors.keys() & embedded.keys()):
        raise InputError(
            "two concept databases hold one layer",
            got=f"{twice[0]} in {path.name} and another",
            expected="one database a layer",
            fix="name the database that is meant",
        )


def _renamed(
    layer: str, examples: Sequence[TopExamples], embedded: dict[str, Tensor]
) -> dict[str, Tensor]:
    """The database under the name that was given to its cache; a name is for one layer only."""
    only_name(layer, [part.layer for part in examples])
    return dict(zip(only_name(layer, [*embedded]), embedded.values(), strict=True))


def _require_fit(examples: Sequence[TopExamples], embedded: dict[str, Tensor]) -> None:
    for part in examples:
        rows = embedded.get(part.layer)
        if rows is not None and rows.shape[:2] != part.image_ids.shape:
            raise InputError(
                f"cache and concept database of {part.layer} do not fit",
                got=f"{tuple(part.image_ids.shape)} and {tuple(rows.shape)}",
                expected="the same channels and samples",
                fix="take both from one collection",
            )


def _notes(examples: Sequence[TopExamples]) -> list[str]:
    if not examples:
        return []
    return [
        "SemanticLens keeps one bfloat16 number an image: close ranks may be swapped, and each "
        "patch is a whole image"
    ]


def write(contents: Contents, folder: Path) -> list[Path]:
    """Write a cache of each layer, and the concept database where embeddings are known.

    ``ActMaxCache.load(folder)`` of semanticlens reads the caches; put into the tool's
    ``storage_dir`` the concept database is found by ``Lens.compute_concept_db`` where the folder
    is named as the foundation model is.

    Raises
    ------
    InputError
        No examples, empty slots, no activations, or a file that would be overwritten.
    """
    contents.require("SemanticLens", "examples")
    for part in contents.examples:
        if part.values is None or bool((part.image_ids < 0).any()):
            raise InputError(
                f"{part.layer} cannot be written for SemanticLens",
                got="channels with empty slots" if part.values is not None else "no activations",
                expected="an image and its activation in every slot",
                fix="write fewer examples per channel with --top-k",
            )
    names = [_cache_name(part) for part in contents.examples]
    if long := [name for name in names if len(name.encode()) > _LONGEST]:
        raise InputError("a layer's name makes a file name too long", got=long[0][:80] + "…")
    database = _database_name(contents)
    paths = new_files(folder, [*names, *([database] if contents.embedded else [])])
    for path, part in zip(paths, contents.examples, strict=False):
        assert part.values is not None
        notes = {
            "aggregation_fn_name": _aggregator(part),
            "n_collect": str(part.image_ids.shape[1]),
            "n_latents": str(len(part.image_ids)),
            "layer_name": part.layer,
        }
        tensors = {"activations": part.values.to(torch.bfloat16), "sample_ids": part.image_ids}
        write_tensors(path, tensors, notes)
    if contents.embedded:
        write_tensors(paths[-1], contents.embedded, {})
    return [*paths, *write_channels(folder, contents.examples)]


def _aggregator(part: TopExamples) -> str:
    """Name of the tool's function that takes the maximum over such a layer."""
    if part.grid is None or part.grid == (1, 1):
        return "identity"
    return _AGGREGATORS["tokens" if part.grid[1] == 1 else "map"]


def _cache_name(part: TopExamples) -> str:
    return f"{_aggregator(part)}-{part.image_ids.shape[1]}-{file_stem(part.layer)}.safetensors"


def _database_name(contents: Contents) -> str:
    """The name the tool looks for; it lists all layers, which a file system may not take."""
    first = contents.examples[0]
    layers = [part.layer for part in contents.examples]
    name = f"concept_db-{_aggregator(first)}-{first.image_ids.shape[1]}-{layers}.safetensors"
    if len(name.encode()) > _LONGEST:
        name = "concept_db.safetensors"
    encoder = (contents.encoder or "encoder").replace("/", "-")
    return f"concept_database/{encoder}/{name}"
