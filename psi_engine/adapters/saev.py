"""saev (Stevens et al. 2025, arXiv 2502.06755): token activations of a sparse autoencoder.

``token_acts.npz`` is a SciPy CSR matrix (images · tokens, latents); row = image · tokens + token,
content tokens only, so that they are a grid of patches read row by row. Layout as the project's
inference script writes it. Nothing else of its folder is opened: older versions keep pickles.

>>> from psi_engine import adapters
>>> contents = adapters.read("saev", "inference/3e27794f/token_acts.npz", grid=(14, 14), top_k=50)
>>> contents.examples[0].image_ids.shape            # (latents, 50)
>>> from psi_engine.adapters.into_run import import_files
>>> run = import_files(                             # crops of 64 pixels around each token
...     "saev", ["inference/3e27794f/token_acts.npz"], grid=(14, 14), patch=64,
...     data="images", encoder="open_clip:ViT-B-32", out="runs/latents",
... )
>>> adapters.write("saev", adapters.from_run("runs/resnet50"), "exported")
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import sparse

from psi_engine.adapters.contents import Contents, ReadOptions, TopExamples, new_files
from psi_engine.adapters.safe_files import read_npz, require_room
from psi_engine.artifacts import atomic
from psi_engine.errors import InputError
from psi_engine.types import ActivationStats

WHAT = "token_acts.npz (CSR, images · tokens by latents)"

FILE = "token_acts.npz"
_PARTS = ("format", "shape", "data", "indices", "indptr")
_STATISTICS = 128  # bytes a latent takes beside its examples, at most
_SLOT = 64  # bytes of an example of a latent: row, value, id, place, and their copies
_LATENTS = 1024  # looked at together: the matrix in hand is sorted block by block


def read(paths: Sequence[Path], options: ReadOptions) -> Contents:
    """Find the images with the greatest activation of each latent, one token an image.

    The grid comes from the options, or from the number of images where the tokens of an image
    make a square.

    Raises
    ------
    InputError
        The file is broken or no such matrix, holds NaN, or the tokens of an image are not known.
    """
    if len(paths) != 1:
        raise InputError("one token_acts.npz is read at a time", got=len(paths), expected=WHAT)
    path = paths[0] / FILE if paths[0].is_dir() else paths[0]
    matrix = _matrix(path, options.top_k)
    grid = _grid(path, matrix.shape[0], options)
    layer = options.layer or "latents"
    tokens = grid[0] * grid[1]
    columns = matrix.tocsc()
    columns.eliminate_zeros()
    rows, values = _tops(columns, tokens, options.top_k)
    ids = torch.from_numpy(np.where(rows < 0, -1, rows // tokens))
    places = torch.from_numpy(np.where(rows < 0, 0, rows % tokens))
    stats = _stats(columns)
    notes = [f"{matrix.shape[0] // tokens} images of {tokens} tokens"]
    if below := int((columns.data < 0).sum()):
        notes.append(f"activations below 0, which are never among the top ones: {below}")
    examples = TopExamples(layer, ids, torch.from_numpy(values), places, grid, stats=stats)
    return Contents(
        examples=(examples,),
        images=matrix.shape[0] // tokens,
        notes=tuple(notes),
    )


def _matrix(path: Path, top_k: int) -> Any:
    parts = read_npz(path, "a CSR matrix", _PARTS)
    try:
        form = parts["format"].item()
        form = form.decode() if isinstance(form, bytes) else form
        if form != "csr" or parts["data"].dtype.kind not in "fiu":
            raise ValueError(f"a {form} matrix of {parts['data'].dtype}")
        rows, latents = parts["shape"].tolist()
        if parts["shape"].dtype.kind not in "iu" or rows + 1 != len(parts["indptr"]):
            raise ValueError(f"{rows} rows, {len(parts['indptr'])} ends of rows")
        require_room(path, latents * (_STATISTICS + _SLOT * top_k), f"{latents} latents")
        matrix = sparse.csr_array(
            (parts["data"], parts["indices"], parts["indptr"]), shape=(rows, latents)
        )
        matrix.check_format(full_check=True)
    except (ValueError, TypeError) as error:
        raise InputError(
            f"{path} holds no sound CSR matrix",
            got=str(error),
            expected="what scipy.sparse.save_npz writes of a csr_array",
            fix="run saev's inference again",
        ) from error
    broken = ~np.isfinite(matrix.data)
    if broken.any():
        at = int(np.argmax(broken))
        raise InputError(
            f"{path.name} holds activations that are not finite",
            got=f"{matrix.data[at]} for latent {matrix.indices[at]}",
            expected="finite activations",
        )
    matrix.sum_duplicates()
    return matrix


def _grid(path: Path, rows: int, options: ReadOptions) -> tuple[int, int]:
    if options.grid is not None:
        tokens = options.grid[0] * options.grid[1]
        if rows % tokens or (options.images is not None and rows != tokens * options.images):
            raise InputError(
                f"the rows of {path.name} do not fit images and grid",
                got=f"{rows} rows, {options.images or 'some'} images of {options.grid}",
                expected="images · tokens rows",
                fix="give the --grid of content tokens and the --data that saev used",
            )
        return options.grid
    side = math.isqrt(rows // options.images) if options.images else 0
    if side == 0 or side * side * (options.images or 0) != rows:
        raise InputError(
            f"how many tokens an image of {path.name} has is not known",
            got=f"{rows} rows" + (f" for {options.images} images" if options.images else ""),
            fix="give the grid of content tokens, such as --grid 14x14",
        )
    return side, side


def _tops(columns: Any, tokens: int, top_k: int) -> tuple[np.ndarray, np.ndarray]:
    """Matrix rows int64 and values float32, (latents, top_k), of the best token of each image.

    Only positive activations count: what is not stored is 0. Empty slots hold −1 and NaN.
    """
    latents = columns.shape[1]
    rows = np.full((latents, top_k), -1, np.int64)
    values = np.full((latents, top_k), np.nan, np.float32)
    for start in range(0, latents, _LATENTS):
        part = columns[:, start : start + _LATENTS].tocoo()
        positive = part.data > 0
        row = part.coords[0][positive].astype(np.int64)
        latent = part.coords[1][positive].astype(np.int64)
        value = part.data[positive].astype(np.float32)
        order = np.lexsort((row, -value, row // tokens, latent))
        row, latent, value = row[order], latent[order], value[order]
        image = row // tokens
        first = np.ones(len(row), bool)
        first[1:] = (image[1:] != image[:-1]) | (latent[1:] != latent[:-1])
        row, latent, value, image = row[first], latent[first], value[first], image[first]
        order = np.lexsort((image, -value, latent))
        row, latent, value = row[order], latent[order], value[order]
        begin = np.searchsorted(latent, np.arange(part.shape[1]))
        rank = np.arange(len(row)) - begin[latent]
        kept = rank < top_k
        rows[start + latent[kept], rank[kept]] = row[kept]
        values[start + latent[kept], rank[kept]] = value[kept]
    return rows, values


def _stats(columns: Any) -> ActivationStats:
    """Statistics over every token, unstored zeros included; the matrix holds no stored ones."""
    count, latents = columns.shape
    stored = np.diff(columns.indptr)
    owner = np.repeat(np.arange(latents), stored)
    data = columns.data.astype(np.float64)
    total = np.bincount(owner, data, latents)
    squares = np.bincount(owner, data * data, latents)
    low = np.where(stored < count, 0.0, np.inf)
    high = np.where(stored < count, 0.0, -np.inf)
    np.minimum.at(low, owner, data)
    np.maximum.at(high, owner, data)
    mean = total / count
    return ActivationStats(
        minimum=torch.from_numpy(low.astype(np.float32)),
        maximum=torch.from_numpy(high.astype(np.float32)),
        mean=torch.from_numpy(mean),
        variance=torch.from_numpy(np.maximum(squares / count - mean**2, 0)),
        sparsity=torch.from_numpy(1 - stored / count),
        nonfinite=torch.zeros(latents, dtype=torch.int64),
        count=torch.full((latents,), count),
    )


def write(contents: Contents, folder: Path) -> list[Path]:
    """Write the top activations of one layer as ``token_acts.npz``; all others count as 0.

    There are rows for every image of the data set; where the contents do not say how many there
    are, up to the last image that any channel has among its top ones. Channels that the contents
    leave out are columns of zeros.

    Raises
    ------
    InputError
        Several layers, no activations or grid, activations below 0, or the file is there.
    """
    contents.require("saev", "examples")
    part = contents.examples[0]
    if len(contents.examples) > 1 or part.values is None or part.grid is None:
        raise InputError(
            "saev keeps the tokens of one layer, with activations",
            got=", ".join(contents.layers),
            expected="one layer whose sites have activations and positions",
            fix="name one layer with --layer",
        )
    if bool((part.values < 0).any()):
        raise InputError(
            f"{part.layer} cannot be written for saev",
            got=f"an activation of {float(part.values.nan_to_num(0).min())}",
            expected="activations of 0 or more: what is not stored counts as 0, above them",
            fix="write a layer after a ReLU, or fewer examples per channel with --top-k",
        )
    last = int(part.image_ids.max()) + 1
    images = last if contents.images is None else contents.images
    part.require_inside(images)
    (path,) = new_files(folder, [FILE])
    tokens = part.grid[0] * part.grid[1]
    there = (part.image_ids >= 0) & (part.values != 0)
    channel = part.numbers[:, None].expand_as(part.image_ids)[there].numpy()
    place = torch.zeros_like(part.image_ids) if part.positions is None else part.positions
    row = (part.image_ids * tokens + place)[there].numpy()
    shape = (images * tokens, int(part.numbers.max()) + 1)
    matrix = sparse.csr_array((part.values[there].numpy(), (row, channel)), shape=shape)
    with atomic(path) as temporary, open(temporary, "wb") as file:
        sparse.save_npz(file, matrix)
    return [path]
