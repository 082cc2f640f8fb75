"""What files bring along beside sites: embeddings, names, and what a reader must know of them."""

from __future__ import annotations

import torch
from torch import Tensor

from psi_engine import artifacts
from psi_engine.adapters.contents import Contents, TopExamples
from psi_engine.adapters.pictures import (
    ExemplarPictures,
    NumberedPatches,
    as_patches,
    as_pictures,
)
from psi_engine.data import ImageSource
from psi_engine.errors import InputError
from psi_engine.standins import IMPORTED, GivenEmbeddings, NumberedImages
from psi_engine.types import Mined

_SAME = 1e-3  # of the largest entry: embeddings of one image, stored in half precision


def content_fingerprint(contents: Contents) -> str:
    """Hash what was read, whatever the files are called: 16 hex digits."""
    parts: dict[str, str] = {}
    for part in contents.examples:
        for name in ("image_ids", "values", "positions", "channels"):
            if (tensor := getattr(part, name)) is not None:
                parts[f"{part.layer}/{name}"] = artifacts.tensor_fingerprint(tensor)
    for kind in ("embedded", "activations"):
        for layer, tensor in getattr(contents, kind).items():
            parts[f"{kind}/{layer}"] = artifacts.tensor_fingerprint(tensor)
    for name in ("image_embeddings", "text_embeddings"):
        if (tensor := getattr(contents, name)) is not None:
            parts[name] = artifacts.tensor_fingerprint(tensor)
    for layer, found in contents.exemplars.items():
        for name, array in (("images", found.images), ("masks", found.masks)):
            digests = [
                artifacts.tensor_fingerprint(torch.from_numpy(unit.copy())) for unit in array
            ]
            parts[f"{layer}/{name}"] = artifacts.fingerprint(digests)
    return artifacts.fingerprint(parts, contents.concepts)


def own_images(contents: Contents) -> tuple[Contents, ImageSource]:
    """The images that the files bring along, where no data are given: pictures or names alone.

    Raises
    ------
    InputError
        They bring neither pictures nor embeddings.
    """
    if contents.exemplars:
        return as_pictures(contents)
    if contents.image_embeddings is not None:
        names = [f"image {i}" for i in range(len(contents.image_embeddings))]
        return contents, NumberedImages(names)
    if contents.embedded and contents.examples:
        return as_patches(contents)
    held = "activations" if contents.activations else "ids of images"
    raise InputError(
        "the files hold no images and no embeddings",
        got=f"{held} of {', '.join(contents.layers)}",
        expected="--data with the images they are of, and --encoder to go on to scores",
        fix="give --data, in the order the tool read it",
    )


def given_encoder(contents: Contents, fingerprint: str) -> GivenEmbeddings | None:
    """The stand-in for the encoder of the embeddings in the files; None without any."""
    rows = contents.image_embeddings
    if rows is None and not contents.embedded:
        return None
    dim = (next(iter(contents.embedded.values())) if rows is None else rows).shape[-1]
    texts, names = contents.text_embeddings, contents.concepts
    if texts is not None:
        texts = torch.nn.functional.normalize(texts.to(torch.float64), dim=1).to(torch.float32)
        names = names or tuple(f"concept {i}" for i in range(len(texts)))
    return GivenEmbeddings(contents.encoder or IMPORTED, dim, fingerprint, names, texts)


def given_ids(contents: Contents) -> Tensor:
    """Images that any channel has among its examples, int64 (n,) ascending."""
    ids = torch.cat([part.image_ids.flatten() for part in contents.examples]).unique()
    return ids[ids >= 0]


def given_embeddings(contents: Contents) -> tuple[Tensor, Tensor]:
    """Ids int64 (n,) ascending and rows float32 (n, dim) of images embedded in the files.

    Raises
    ------
    InputError
        An image has several embeddings: they are of its patches, which ids do not tell apart.
    """
    if contents.image_embeddings is not None:
        return torch.arange(len(contents.image_embeddings)), contents.image_embeddings
    ids = given_ids(contents)
    rows = torch.zeros(len(ids), next(iter(contents.embedded.values())).shape[2])
    places = []
    for part in contents.examples:
        there = part.image_ids >= 0
        own = contents.embedded[part.layer][there]
        places.append((part.layer, torch.searchsorted(ids, part.image_ids[there]), own))
        rows[places[-1][1]] = own
    for layer, place, own in places:
        if bool(((rows[place] - own).abs() > _SAME * own.abs().max()).any()):
            raise InputError(
                f"images have several embeddings in the concept database of {layer}",
                got="embeddings of patches",
                expected="one embedding an image",
                fix="leave out --data, or give --encoder to embed anew",
            )
    return ids, rows


def known_images(
    contents: Contents, part: TopExamples, source: ImageSource, embeds: bool
) -> Tensor | None:
    """The images that a layer's pool can hold, int64 (n,) ascending; None = all.

    Parameters
    ----------
    contents : Contents
    part : TopExamples
        Of the layer.
    source : ImageSource
        The images of the run.
    embeds : bool
        Whether an encoder embeds the images; else embeddings of the files stand in.
    """
    if isinstance(source, NumberedPatches | ExemplarPictures):
        return part.image_ids[part.image_ids >= 0].unique()  # the layer's own
    if embeds or contents.image_embeddings is not None or not contents.embedded:
        return None
    return given_ids(contents)


def pool_notes(contents: Contents, source: ImageSource, embeds: bool) -> list[str]:
    """Say where the pool, against which channels are tested, is not drawn from all images."""
    if any(known_images(contents, part, source, embeds) is not None for part in contents.examples):
        return [
            "the pool is the examples themselves: the files hold no other images, so that nulls "
            "are of what excites some channel, not of the data set"
        ]
    return []


def place_notes(contents: Contents, mined: Mined) -> list[str]:
    """Say where positions or activations are not used, not there, or taken on trust."""
    notes = []
    for part in contents.examples:
        if part.layer in contents.activations:
            continue
        flat = mined[part.layer].shape.kind == "flat"
        if part.positions is not None and flat and bool((part.positions > 0).any()):
            notes.append(
                f"positions of {part.layer} are not used, each patch is a whole image: give "
                "--model, or --grid and --patch PIXELS"
            )
        if part.positions is not None and part.grid is None and not flat:
            rows, columns = mined[part.layer].shape.grid
            notes.append(
                f"positions of {part.layer} are taken to count through the model's map, "
                f"{rows} × {columns}: give --grid to have this checked"
            )
        if part.values is None:
            notes.append(f"{part.layer} has no activations, only ids in order")
            continue
        tied = int((part.values.amax(1) == part.values.amin(1)).sum())
        if tied:
            notes.append(
                f"channels of {part.layer} with equal activations in all examples, so that which "
                f"images these are is arbitrary: {tied}"
            )
    return notes
