"""Tables with an image column, as Hugging Face ``datasets`` lays them out."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from PIL import Image
from torch import Tensor

from psi_engine.data.classes import check_named, read_classes
from psi_engine.data.preprocess import decode
from psi_engine.data.source import PIECE, CorruptImage, ends_of, gone
from psi_engine.errors import DataError

_LEAST_PROBES, _ROWS_PER_PROBE, _MOST_PROBES = 16, 128, 4096


def features_of(schema: pa.Schema) -> dict[str, Any]:
    """What ``datasets`` says about each column; empty if the file is of another tool."""
    text = (schema.metadata or {}).get(b"huggingface")
    if text is None:
        return {}
    try:
        features = json.loads(text)["info"]["features"]
    except (ValueError, KeyError, TypeError):
        return {}
    return features if isinstance(features, dict) else {}


def find_columns(
    schema: pa.Schema, features: dict[str, Any], where: str | Path
) -> tuple[str, str | None]:
    """Name the columns of the images and of the labels.

    Parameters
    ----------
    schema : pyarrow.Schema
    features : dict
        From :func:`features_of`.
    where : str or Path
        What the table is called, for messages.

    Returns
    -------
    image : str
        The one column the features call an ``Image``, else ``image``, else the only column of
        type struct<bytes, path> or binary.
    label : str or None
        ``label``, else the first column the features call a ``ClassLabel``.

    Raises
    ------
    DataError
        There is no image column, or several that are alike.
    """
    return _image_column(schema, features, where), _label_column(schema, features)


def _kind(features: dict[str, Any], column: str) -> str | None:
    feature = features.get(column)
    return feature.get("_type") if isinstance(feature, dict) else None


def _holds_images(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        return any(field.name == "bytes" for field in kind)
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def _image_column(schema: pa.Schema, features: dict[str, Any], where: str | Path) -> str:
    candidates = [field.name for field in schema if _holds_images(field.type)]
    named = [name for name in candidates if _kind(features, name) == "Image"]
    for choice in (named, [name for name in candidates if name == "image"], candidates):
        if len(choice) == 1:
            return choice[0]
    raise DataError(
        f"{where} has no image column" if not candidates else f"{where} has several image columns",
        got="columns " + ", ".join(f"{field.name}: {field.type}" for field in schema),
        expected="one column 'image' of type struct<bytes: binary, path: string> or binary",
    )


def _label_column(schema: pa.Schema, features: dict[str, Any]) -> str | None:
    named = [name for name in schema.names if _kind(features, name) == "ClassLabel"]
    if "label" in named or (not named and "label" in schema.names):
        return "label"
    return named[0] if named else None


def read_labels(
    values: pa.ChunkedArray | None, feature: Any, root: Path | None, where: str | Path
) -> tuple[Tensor | None, tuple[str, ...] | None]:
    """Labels and their names from a label column.

    Parameters
    ----------
    values : pyarrow.ChunkedArray or None
        Integers, or strings, which are numbered in sorted order.
    feature : Any
        What the features say of the column.
    root : Path or None
        A folder that may hold ``classes.json`` for integers without names.
    where : str or Path

    Returns
    -------
    labels : Tensor or None
        int64 (rows,), −1 for nulls and numbers below 0.
    names : tuple of str or None

    Raises
    ------
    DataError
        The column holds something else, or a label has no name among those there are.
    """
    if values is None:
        return None, None
    if pa.types.is_string(values.type) or pa.types.is_large_string(values.type):
        words = sorted(set(values.drop_null().to_pylist()))
        number = {word: i for i, word in enumerate(words)}
        found = [number.get(value, -1) for value in values.to_pylist()]
        return torch.tensor(found, dtype=torch.int64), tuple(words)
    if not pa.types.is_integer(values.type):
        raise DataError(
            f"labels in {where} are of a strange type",
            got=f"a column of {values.type}",
            expected="integers or strings",
        )
    numbers = values.cast(pa.int64()).fill_null(-1).to_numpy().astype(np.int64)
    labels = torch.from_numpy(np.where(numbers < 0, -1, numbers))
    given = feature.get("names") if isinstance(feature, dict) else None
    names = tuple(map(str, given)) if given else None
    if names is None and root is not None:
        classes = read_classes(root)
        names = classes.by_label if classes is not None else None
    check_named(labels, names, str(where))
    return labels, names


def decode_cell(content: bytes | None, path: str | None, *roots: Path) -> Image.Image:
    """Decode the image of one row: its bytes, else the file it names.

    Parameters
    ----------
    content : bytes or None
    path : str or None
        Relative to the first of the roots, or absolute.
    *roots : Path
        Folders; a row may name files in them alone, wherever links lead.

    Raises
    ------
    CorruptImage
        There is neither, it lies outside the roots, is not there or no image.
    DataError
        The system fails to read it.
    """
    if content is None and path is not None:
        file = file_below(path, *roots)
        if file is None:
            raise CorruptImage(f"no bytes in the row, which names a file outside: {path}")
        try:
            if not file.is_file():
                raise CorruptImage(f"no bytes in the row and no file {path}")
            content = file.read_bytes()
        except PermissionError as error:
            raise CorruptImage(f"no bytes in the row and {error}") from error
        except OSError as error:
            raise gone(file, error) from error
    if content is None:
        raise CorruptImage("the row holds no image")
    try:
        return decode(content)
    except ValueError as error:
        raise CorruptImage(str(error)) from error


def signs_of(images: pa.ChunkedArray, *roots: Path) -> Iterator[str | bytes]:
    """What a fingerprint takes of an image column, however it is cut into chunks.

    The length of every stored image, the first and last 4 KB of one in 128 (of 16 at least, of
    4096 at most) at even distances, and of each file that a row names instead its place below
    the root, its size and its first and last 4 KB.

    Parameters
    ----------
    images : pyarrow.ChunkedArray
        Of type struct<bytes, path> or binary; not empty.
    *roots : Path
        As for :func:`decode_cell`.
    """
    stored, paths = images, None
    if pa.types.is_struct(images.type):
        stored = pc.struct_field(images, "bytes")
        if "path" in [field.name for field in images.type]:
            paths = pc.struct_field(images, "path")
    lengths = pc.fill_null(pc.cast(pc.binary_length(stored), pa.int64()), -1).to_numpy()
    yield lengths.tobytes()
    wanted = min(max(_LEAST_PROBES, len(images) // _ROWS_PER_PROBE), _MOST_PROBES)
    for row in np.unique(np.linspace(0, len(images) - 1, wanted).astype(np.int64)):
        if (piece := stored[row].as_buffer()) is not None:
            yield piece[:PIECE].to_pybytes() + piece[max(0, len(piece) - PIECE) :].to_pybytes()
    if paths is None:
        return
    for row in np.flatnonzero(lengths < 0):
        path = paths[row].as_py()
        for root in roots if path is not None else ():
            file = file_below(path, root)
            if file is not None and file.is_file():
                yield file.relative_to(root.resolve()).as_posix()
                yield ends_of(file)
                break


def file_below(path: str, *roots: Path) -> Path | None:
    """What a path from a data set leads to; None unless it lies below one of the roots."""
    for root in roots:
        base = root.resolve()
        try:
            file = (base / path).resolve()
        except (ValueError, RuntimeError):  # a zero byte, a loop of links
            return None
        if file.is_relative_to(base) and file != base:
            return file
    return None


def cell_of(value: Any) -> tuple[bytes | None, str | None]:
    """Bytes and path of an image column's value: a struct, plain bytes, or null."""
    if isinstance(value, dict):
        return value.get("bytes"), value.get("path")
    return value, None
