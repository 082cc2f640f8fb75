"""Parquet files with an image column, as Hugging Face ``datasets`` writes them."""

from __future__ import annotations

import bisect
import json
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from torch import Tensor

from psi_engine.data.columns import cell_of, decode_cell, features_of, find_columns, read_labels
from psi_engine.data.folders import files_ending
from psi_engine.data.source import ImageSource, fingerprint_of, probe
from psi_engine.errors import DataError

CACHE_BYTES = 256 << 20
"""Encoded bytes of row groups kept at hand. A larger row group is gone through in blocks."""
BLOCK_BYTES = 16 << 20
"""About what a block of a large row group holds."""
OPEN_FILES = 8
"""Files kept open."""

_PROBES = 8
"""Pieces of a row group's images that enter the fingerprint, the first and last among them."""


class _RowGroup(NamedTuple):
    file: int
    group: int
    start: int  # index of its first row in the source
    rows: int
    size: int  # bytes of its images


class _Block(NamedTuple):
    group: int
    start: int  # row in the group
    values: pa.Array
    following: Iterator[pa.RecordBatch]


class ParquetSource(ImageSource):
    """Images in the rows of one or more Parquet files, in the order of the files' paths.

    Rows are read by row group when they are asked for, a row group beyond ``CACHE_BYTES`` block
    by block, so memory holds no file whole; labels and stored paths are read at once. Going
    back in a large row group reads it from its start again.

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
    ``classes.json``, ``words.txt`` or ``classnames.txt`` beside the files.

    The fingerprint covers each file's name, size and footer (schema, row groups, statistics and
    places), the keys, the labels, the class names, and of the stored images of each row group
    8 pieces of 4 KB.
    """

    _block: _Block | None

    def __init__(self, path: Path) -> None:
        self.name = str(path)
        self._root = path if path.is_dir() else path.parent
        self._files = [path] if path.is_file() else files_ending(path, (".parquet",))
        self._groups: list[_RowGroup] = []
        self.keys: list[str] = []
        label_parts: list[pa.ChunkedArray] = []
        signs: list[str | bytes] = ["parquet"]
        for number, file in enumerate(self._files):
            with _open(file) as header:
                schema = header.schema_arrow
                if number == 0:
                    first, features = schema, features_of(schema)
                    self._column, label = find_columns(schema, features, file)
                _check_shard(file, schema, first, (self._column, label))
                shard = file.relative_to(self._root).as_posix()
                self._groups += _row_groups(header, number, self._column, len(self.keys))
                self.keys += _keys(header, self._column, shard)
                if label is not None:
                    label_parts.append(header.read(columns=[label]).column(0))
            signs += [shard, str(file.stat().st_size), *_signs(file, header.metadata, self._column)]
        if not self.keys:
            raise DataError(f"no rows in {path}", fix="give a Parquet file with images")
        self._starts = [group.start for group in self._groups]
        self._labels, self.class_names = read_labels(
            None if label is None else pa.chunked_array(label_parts, first.field(label).type),
            features.get(label or ""),
            self._root,
            self._root,
        )
        signs += [*self.keys, json.dumps(self.class_names)]
        signs.append(b"" if self._labels is None else self._labels.numpy().tobytes())
        self.fingerprint = fingerprint_of(signs)
        self._forget()

    @property
    def labels(self) -> Tensor | None:
        """int64 (images,), −1 where the file has none; None without a label column."""
        return self._labels

    def item(self, index: int) -> Image.Image:
        """Decode one row."""
        if not 0 <= index < len(self):
            raise IndexError(f"image {index} of {len(self)}")
        number = bisect.bisect_right(self._starts, index) - 1
        row = index - self._starts[number]
        try:
            large = self._groups[number].size > CACHE_BYTES
            value = self._in_block(number, row) if large else self._whole(number)[row]
        except (pa.ArrowException, OSError) as error:
            raise DataError(
                f"{self._files[self._groups[number].file]} cannot be read any more",
                got=str(error).rstrip("."),
                fix="put it back as it was and run the same command again",
            ) from error
        return decode_cell(*cell_of(value.as_py()), self._root)

    def _whole(self, number: int) -> pa.ChunkedArray:
        """All images of a row group, from the cache if they are there."""
        found = self._cache.get(number)
        if found is not None:
            self._cache.move_to_end(number)
            return found
        reader = self._reader(self._groups[number].file)
        group = self._groups[number].group
        images = reader.read_row_group(group, columns=[self._column], use_threads=False).column(0)
        self._cache[number] = images
        while len(self._cache) > 1 and self._cached_bytes() > CACHE_BYTES:
            self._cache.popitem(last=False)
        return images

    def _in_block(self, number: int, row: int) -> pa.Scalar:
        """One image of a large row group, whose blocks are read in order."""
        block = self._block
        if block is None or block.group != number or row < block.start:
            group = self._groups[number]
            batches = self._reader(group.file).iter_batches(
                max(1, group.rows * BLOCK_BYTES // group.size),
                row_groups=[group.group],
                columns=[self._column],
                use_threads=False,
            )
            block = _Block(number, 0, next(batches).column(0), batches)
        while row >= block.start + len(block.values):
            start = block.start + len(block.values)
            self._block = None  # so that two blocks are never held
            block = block._replace(start=start, values=next(block.following).column(0))
        self._block = block
        return block.values[row - block.start]

    def _reader(self, number: int) -> pq.ParquetFile:
        reader = self._readers.pop(number, None) or _open(self._files[number])
        self._readers[number] = reader
        if len(self._readers) > OPEN_FILES:
            self._readers.popitem(last=False)  # closed when its last block is let go
        return reader

    def _cached_bytes(self) -> int:
        return sum(images.nbytes for images in self._cache.values())

    def _forget(self) -> None:
        self._readers: OrderedDict[int, pq.ParquetFile] = OrderedDict()
        self._cache: OrderedDict[int, pa.ChunkedArray] = OrderedDict()
        self._block = None

    def __getstate__(self) -> dict[str, Any]:
        passing = ("_readers", "_cache", "_block")
        return {k: v for k, v in self.__dict__.items() if k not in passing}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._forget()


def _open(file: Path) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(file, memory_map=True)
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(
            f"{file} cannot be read as Parquet",
            got=str(error).rstrip("."),
            fix="fetch or write the file again",
        ) from error


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


def _row_groups(header: pq.ParquetFile, file: int, column: str, start: int) -> list[_RowGroup]:
    """Row groups of a file; a struct's size is the sum of its fields'."""
    found = []
    metadata = header.metadata
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        size = sum(chunk.total_uncompressed_size for chunk in _chunks(group, column))
        found.append(_RowGroup(file, number, start, group.num_rows, size))
        start += group.num_rows
    return found


def _chunks(group: pq.RowGroupMetaData, column: str) -> list[pq.ColumnChunkMetaData]:
    """What a row group stores of a column; of a struct, each field by itself."""
    chunks = [group.column(i) for i in range(group.num_columns)]
    inside = column + "."
    return [c for c in chunks if c.path_in_schema == column or c.path_in_schema.startswith(inside)]


def _keys(header: pq.ParquetFile, column: str, shard: str) -> list[str]:
    """Stored paths of the images, or ``file.parquet#row`` where there is none."""
    rows = range(header.metadata.num_rows)
    kind = header.schema_arrow.field(column).type
    if not pa.types.is_struct(kind) or kind.get_field_index("path") < 0:
        return [f"{shard}#{row}" for row in rows]
    table = header.read(columns=[f"{column}.path"])
    stored = table.column(0).combine_chunks().flatten()[0].to_pylist()
    return [path or f"{shard}#{row}" for row, path in zip(rows, stored, strict=True)]


def _signs(file: Path, metadata: pq.FileMetaData, column: str) -> Iterator[bytes]:
    """The footer, and a digest of what each row group stores of a column."""
    with open(file, "rb", buffering=0) as stream:
        stream.seek(-8, 2)
        length = int.from_bytes(stream.read(4), "little")
        stream.seek(-8 - length, 2)
        yield stream.read(length)
        for number in range(metadata.num_row_groups):
            for chunk in _chunks(metadata.row_group(number), column):
                first = chunk.dictionary_page_offset or chunk.data_page_offset
                yield probe(stream, first, chunk.total_compressed_size, _PROBES)
