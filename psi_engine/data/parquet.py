"""Parquet files with an image column, as Hugging Face ``datasets`` writes them."""

from __future__ import annotations

import bisect
import json
from collections import OrderedDict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from torch import Tensor

from psi_engine.data.classes import read_classes
from psi_engine.data.preprocess import decode
from psi_engine.data.source import CorruptImage, ImageSource, fingerprint_of
from psi_engine.errors import DataError

CACHE_BYTES = 256 << 20
"""Encoded bytes of row groups kept at hand; one row group is kept whatever its size."""


class _RowGroup(NamedTuple):
    file: int
    group: int
    start: int  # index of its first row in the source


class ParquetSource(ImageSource):
    """Images in the rows of one or more Parquet files, in the order of the files' paths.

    Rows are read by row group when they are asked for; labels and stored paths are read at once.

    Parameters
    ----------
    path : Path
        A Parquet file, or a folder of shards (searched recursively).

    Raises
    ------
    DataError
        If a file is not Parquet, has no image column or no rows, or the shards differ.

    Notes
    -----
    The image column is the one the file's Hugging Face metadata calls an ``Image``, else
    ``image``, else the only column of the right type: struct<bytes, path> or binary. Labels come
    from the column the metadata calls a ``ClassLabel``, else ``label``: integers, or strings,
    which are numbered in sorted order. Class names come from the metadata, else from
    ``classes.json`` beside the files.
    """

    def __init__(self, path: Path) -> None:
        self.name = str(path)
        self._root = path if path.is_dir() else path.parent
        self._files = _shards(path)
        headers = [_open(file) for file in self._files]
        first = headers[0].schema_arrow
        features = _hugging_face_features(first)
        self._column = _image_column(first, features, self._files[0])
        label_column = _label_column(first, features)
        for file, header in zip(self._files, headers, strict=True):
            _check_shard(file, header.schema_arrow, first, (self._column, label_column))

        self._groups: list[_RowGroup] = []
        total = 0
        for number, header in enumerate(headers):
            for group in range(header.metadata.num_row_groups):
                self._groups.append(_RowGroup(number, group, total))
                total += header.metadata.row_group(group).num_rows
        if total == 0:
            raise DataError(f"no rows in {path}", fix="give a Parquet file with images")
        self._starts = [g.start for g in self._groups]

        stored = _stored_paths(headers, self._column)
        self.keys = _keys(self._root, self._files, headers, stored)
        self._labels, self.class_names = _labels(headers, label_column, features, self._root)
        self.fingerprint = fingerprint_of(
            [
                "parquet",
                *(
                    part
                    for file in self._files
                    for part in (
                        file.relative_to(self._root).as_posix(),
                        str(file.stat().st_size),
                        _footer(file),
                    )
                ),
                json.dumps(self.class_names),
            ]
        )
        self._forget()

    @property
    def labels(self) -> Tensor | None:
        """int64 (images,), −1 where the file has none; None without a label column."""
        return self._labels

    def item(self, index: int) -> Image.Image:
        """Decode one row."""
        if not 0 <= index < len(self):
            raise IndexError(f"image {index} of {len(self)}")
        group = bisect.bisect_right(self._starts, index) - 1
        data, paths = self._load(group)
        row = index - self._starts[group]
        content = data[row].as_py()
        if content is None and paths is not None and paths[row].is_valid:
            file = self._root / paths[row].as_py()
            try:
                content = file.read_bytes()
            except OSError as error:
                raise CorruptImage(f"no bytes in the row and {error}") from error
        if content is None:
            raise CorruptImage("the row holds no image")
        try:
            return decode(content)
        except ValueError as error:
            raise CorruptImage(str(error)) from error

    def _load(self, number: int) -> tuple[pa.Array, pa.Array | None]:
        found = self._cache.get(number)
        if found is not None:
            self._cache.move_to_end(number)
            return found
        _, group, _ = self._groups[number]
        file = self._files[self._groups[number].file]
        reader = self._readers.get(file)
        if reader is None:
            reader = self._readers[file] = _open(file)
        column = reader.read_row_group(group, columns=[self._column], use_threads=False)
        images = column.column(0).combine_chunks()
        if pa.types.is_struct(images.type):
            names = [field.name for field in images.type]
            # flatten() rather than field(): it carries the struct's own nulls down.
            parts = dict(zip(names, images.flatten(), strict=True))
            loaded = (parts["bytes"], parts.get("path"))
        else:
            loaded = (images, None)
        self._cache[number] = loaded
        while len(self._cache) > 1 and self._cached_bytes() > CACHE_BYTES:
            self._cache.popitem(last=False)
        return loaded

    def _cached_bytes(self) -> int:
        return sum(data.nbytes for data, _ in self._cache.values())

    def _forget(self) -> None:
        self._readers: dict[Path, pq.ParquetFile] = {}
        self._cache: OrderedDict[int, tuple[pa.Array, pa.Array | None]] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k not in ("_readers", "_cache")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._forget()


def _shards(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    files = [
        file
        for file in path.rglob("*.parquet")
        if not any(part.startswith(".") for part in file.relative_to(path).parts)
    ]
    return sorted(files, key=lambda file: file.relative_to(path).parts)


def _open(file: Path) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(file, memory_map=True)
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(
            f"{file} cannot be read as Parquet",
            got=str(error).rstrip("."),
            fix="fetch or write the file again",
        ) from error


def _hugging_face_features(schema: pa.Schema) -> dict[str, Any]:
    text = (schema.metadata or {}).get(b"huggingface")
    if text is None:
        return {}
    try:
        features = json.loads(text)["info"]["features"]
    except (ValueError, KeyError, TypeError):
        return {}
    return features if isinstance(features, dict) else {}


def _feature_type(features: dict[str, Any], column: str) -> str | None:
    feature = features.get(column)
    return feature.get("_type") if isinstance(feature, dict) else None


def _holds_images(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        return any(field.name == "bytes" for field in kind)
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def _image_column(schema: pa.Schema, features: dict[str, Any], file: Path) -> str:
    candidates = [field.name for field in schema if _holds_images(field.type)]
    named = [name for name in candidates if _feature_type(features, name) == "Image"]
    for choice in (named, [name for name in candidates if name == "image"], candidates):
        if len(choice) == 1:
            return choice[0]
    raise DataError(
        f"{file} has no image column" if not candidates else f"{file} has several image columns",
        got="columns " + ", ".join(f"{field.name}: {field.type}" for field in schema),
        expected="one column 'image' of type struct<bytes: binary, path: string> or binary",
    )


def _label_column(schema: pa.Schema, features: dict[str, Any]) -> str | None:
    named = [name for name in schema.names if _feature_type(features, name) == "ClassLabel"]
    if "label" in named or (not named and "label" in schema.names):
        return "label"
    return named[0] if named else None


def _check_shard(
    file: Path, schema: pa.Schema, first: pa.Schema, columns: tuple[str, str | None]
) -> None:
    for name in columns:
        if name is None:
            continue
        here = schema.field(name).type if name in schema.names else None
        if here != first.field(name).type:
            raise DataError(
                f"{file} does not match the first shard",
                got=f"column {name!r}: {here or 'missing'}",
                expected=str(first.field(name).type),
                fix="give one file, or a folder with shards of one data set",
            )


def _stored_paths(headers: list[pq.ParquetFile], column: str) -> list[str | None] | None:
    kind = headers[0].schema_arrow.field(column).type
    if not pa.types.is_struct(kind) or kind.get_field_index("path") < 0:
        return None
    paths: list[str | None] = []
    for header in headers:
        table = header.read(columns=[f"{column}.path"])
        paths += table.column(0).combine_chunks().flatten()[0].to_pylist()
    return paths


def _keys(
    root: Path,
    files: list[Path],
    headers: list[pq.ParquetFile],
    stored: list[str | None] | None,
) -> list[str]:
    keys: list[str] = []
    for file, header in zip(files, headers, strict=True):
        shard = file.relative_to(root).as_posix()
        for row in range(header.metadata.num_rows):
            path = stored[len(keys)] if stored is not None else None
            keys.append(path or f"{shard}#{row}")
    return keys


def _labels(
    headers: list[pq.ParquetFile],
    column: str | None,
    features: dict[str, Any],
    root: Path,
) -> tuple[Tensor | None, tuple[str, ...] | None]:
    if column is None:
        return None, None
    table = pa.concat_tables([header.read(columns=[column]) for header in headers])
    values = table.column(0)
    if pa.types.is_string(values.type) or pa.types.is_large_string(values.type):
        names = sorted(set(values.drop_null().to_pylist()))
        number = {name: i for i, name in enumerate(names)}
        found = [number.get(value, -1) for value in values.to_pylist()]
        return torch.tensor(found, dtype=torch.int64), tuple(names)
    if not pa.types.is_integer(values.type):
        raise DataError(
            f"labels in {root} are of a strange type",
            got=f"column {column!r}: {values.type}",
            expected="integers or strings",
        )
    numbers = values.cast(pa.int64()).fill_null(-1).to_numpy().astype(np.int64)
    labels = torch.from_numpy(np.where(numbers < 0, -1, numbers))
    named = features.get(column, {}).get("names") if column in features else None
    class_names = tuple(map(str, named)) if named else None
    if class_names is None:
        classes = read_classes(root)
        class_names = classes.by_label if classes is not None else None
    if class_names is not None and len(labels) and int(labels.max()) >= len(class_names):
        raise DataError(
            f"labels in {root} have no name",
            got=f"label {int(labels.max())} with {len(class_names)} class names",
            expected=f"labels below {len(class_names)}",
        )
    return labels, class_names


def _footer(file: Path) -> bytes:
    with file.open("rb") as stream:
        stream.seek(-8, 2)
        length = int.from_bytes(stream.read(4), "little")
        stream.seek(-8 - length, 2)
        return stream.read(length)
