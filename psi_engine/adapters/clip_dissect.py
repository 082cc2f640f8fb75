"""CLIP-Dissect (Oikarinen & Weng 2023, arXiv 2204.10965): activations, features, descriptions.

=================================  ==============================================================
``{probe}_{model}_{layer}.pt``     (images, channels): mean over the map; ``…_max.pt`` the maximum
``{probe}_{clip}.pt``              (images, dim): image features, not normalised
``{concepts}_{clip}.pt``           (concepts, dim): text features, not normalised
``descriptions.csv`` (written)     ``layer,unit,description,similarity``
=================================  ==============================================================

Together they hold all a score needs, so that no model runs: top images, pool, nulls and names
come from the three files. They are given in this order, several layers first if there are; a
``.txt`` of concepts, one a line, names the rows of the third.

>>> from psi_engine import adapters
>>> files = ["broden_resnet50_layer4.pt", "broden_ViT-B16.pt", "20k_ViT-B16.pt", "20k.txt"]
>>> contents = adapters.read("clip-dissect", *files)
>>> contents.activations["layer4"].shape            # (images, channels)
>>> from psi_engine.adapters.into_run import import_files
>>> run = import_files("clip-dissect", files, out="runs/dissect")
>>> run.channels.column_names
>>> adapters.write("clip-dissect", adapters.from_run(run.path), "exported")
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from psi_engine.adapters.contents import Contents, ReadOptions, new_files, only_name
from psi_engine.adapters.safe_files import read_pt, require_finite, write_text
from psi_engine.errors import InputError
from psi_engine.names import read_names

WHAT = "ACTIVATIONS.pt … IMAGE_FEATURES.pt TEXT_FEATURES.pt [CONCEPTS.txt]"

TABLE = "descriptions.csv"


def read(paths: Sequence[Path], options: ReadOptions) -> Contents:
    """Read activations, image features, text features and names, in this order.

    Raises
    ------
    InputError
        A file is missing or broken, or their shapes do not fit.
    """
    lists = [path for path in paths if path.suffix == ".txt"]
    files = [path for path in paths if path.suffix != ".txt"]
    if len(files) < 3 or len(lists) > 1:
        raise InputError(
            "not the files of CLIP-Dissect",
            got=", ".join(path.name for path in paths),
            expected=WHAT,
        )
    *layers, images, texts = files
    tensors = {path: read_pt(path, what) for path, what in _roles(layers, images, texts)}
    activations: dict[str, Tensor] = {}
    names = only_name(options.layer, [_layer(path, layers) for path in layers])
    for path, name in zip(layers, names, strict=True):
        if name in activations:
            raise InputError(
                "two files hold activations of one layer",
                got=f"{path.name}, twice",
                expected="one file a layer",
                fix="give each file once",
            )
        activations[name] = tensors[path]
        require_finite(path, tensors[path], "activations")
        _require_rows(path, tensors[path], images, tensors[images])
    _require_dim(images, tensors[images], texts, tensors[texts])
    for path in (images, texts):
        require_finite(path, tensors[path], "features")
    concepts = read_names(lists[0]) if lists else None
    count = len(tensors[texts])
    if concepts is not None and len(concepts) != count:
        raise InputError(
            f"{lists[0].name} does not name the rows of {texts.name}",
            got=f"{len(concepts)} names for {count} rows",
            expected="one line for each",
        )
    pooled = "maximum" if layers[0].stem.endswith("_max") else "mean"
    return Contents(
        activations=activations,
        image_embeddings=tensors[images],
        text_embeddings=tensors[texts],
        concepts=concepts,
        encoder=images.stem.rpartition("_")[2],
        notes=(f"activations are the {pooled} over each image's map: a patch is a whole image",),
    )


def _roles(layers: Sequence[Path], images: Path, texts: Path) -> list[tuple[Path, str]]:
    return [
        *((path, "activations (images, channels)") for path in layers),
        (images, "image features (images, dim)"),
        (texts, "text features (concepts, dim)"),
    ]


def _layer(path: Path, layers: Sequence[Path]) -> str:
    """The last word of the name; the whole of it where layers would be confused."""
    short = [other.stem.removesuffix("_max").rpartition("_")[2] for other in layers]
    name = path.stem.removesuffix("_max").rpartition("_")[2]
    return name if short.count(name) == 1 else path.stem


def _require_rows(path: Path, activations: Tensor, images: Path, features: Tensor) -> None:
    if len(activations) != len(features):
        raise InputError(
            "activations and image features are of different images",
            got=f"{path.name} {tuple(activations.shape)}, {images.name} {tuple(features.shape)}",
            expected="one row an image in both",
            fix="take files of one probe set; first activations, then image and text features",
        )


def _require_dim(images: Path, features: Tensor, texts: Path, words: Tensor) -> None:
    if features.shape[1] != words.shape[1]:
        raise InputError(
            "image and text features are of different encoders",
            got=f"{images.name} {tuple(features.shape)}, {texts.name} {tuple(words.shape)}",
            expected="the same number of columns",
            fix="take files of one CLIP; first activations, then image and text features",
        )


def write(contents: Contents, folder: Path) -> list[Path]:
    """Write ``descriptions.csv``; a unit's description is the name of its largest cluster.

    Raises
    ------
    InputError
        Nothing is named, or the file is there.
    """
    contents.require("CLIP-Dissect", "descriptions")
    (path,) = new_files(folder, [TABLE])
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(("layer", "unit", "description", "similarity"))
    for row in contents.descriptions:
        writer.writerow((row.layer, row.unit, row.description, repr(row.similarity)))
    write_text(path, buffer.getvalue())
    return [path]
