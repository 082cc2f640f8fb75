"""Folders that ``save_to_disk`` of Hugging Face ``datasets`` writes, read without that library."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
from PIL import Image
from torch import Tensor

from psi_engine.data.columns import (
    cell_of,
    decode_cell,
    features_of,
    file_below,
    find_columns,
    read_labels,
    signs_of,
)
from psi_engine.data.source import ImageSource, fingerprint_of
from psi_engine.errors import DataError


def is_saved(folder: Path) -> bool:
    """Whether a folder was written by ``save_to_disk``."""
    return (folder / "state.json").is_file() or (folder / "dataset_dict.json").is_file()


def saved_part(folder: Path, split: str, config: str | None) -> Path:
    """The folder of one split of a saved data set.

    Parameters
    ----------
    folder : Path
        Of which :func:`is_saved` is true.
    split : str
        ``train`` stands for the only split too.
    config : str or None

    Raises
    ------
    DataError
        There is no such split, it is a slice of one, or a configuration is named.
    """
    single = not (folder / "dataset_dict.json").is_file()
    if single:
        splits = [_json(folder / "state.json").get("_split") or "train"]
    else:
        splits = _json(folder / "dataset_dict.json")["splits"]
    if config is None and split in splits:
        return folder if single else folder / split
    if config is None and split == "train":
        return folder
    raise DataError(
        f"{folder} has no such part",
        got=split if config is None else f"{split}/{config}",
        expected=f"one of its splits, {', '.join(splits)}",
        fix="a saved data set has no slices and no configurations: --max-images takes fewer",
    )


class ArrowSource(ImageSource):
    """Images in the Arrow files of a saved data set, memory-mapped, in the order of its rows.

    Parameters
    ----------
    folder : Path
        With ``state.json``; or with ``dataset_dict.json``, which stands for its ``train``, or
        its only split: give ``FOLDER/test`` for another.

    Raises
    ------
    DataError
        A file is missing or broken, there is no image column, or no row.

    Notes
    -----
    Columns and labels are found as in Parquet. The fingerprint covers the names and sizes of
    the files, the features, the labels, and of the images what
    :func:`~psi_engine.data.columns.signs_of` takes.
    """

    def __init__(self, folder: Path) -> None:
        self.name = str(folder)
        self._root = _split(folder)
        state = _json(self._root / "state.json")
        self._files = [self._file(entry["filename"]) for entry in state["_data_files"]]
        self._map()
        schema = self._table.schema
        features = features_of(schema)
        self._column, label = find_columns(schema, features, self._root)
        rows = self._table.num_rows
        if rows == 0:
            raise DataError(f"no rows in {folder}", fix="save a data set with images")
        self.keys = [f"{self._root.name}#{row}" for row in range(rows)]
        self._labels, self.class_names = read_labels(
            None if label is None else self._table.column(label),
            features.get(label or ""),
            self._root,
            self._root,
        )
        parts: list[str | bytes] = ["arrow"]
        for file in self._files:
            parts += [file.name, str(file.stat().st_size)]
        parts += [json.dumps(features, sort_keys=True), json.dumps(self.class_names)]
        parts.append(b"" if self._labels is None else self._labels.numpy().tobytes())
        parts += signs_of(self._table.column(self._column), self._root)
        self.fingerprint = fingerprint_of(parts)

    @property
    def labels(self) -> Tensor | None:
        """int64 (images,), −1 where a row has none; None without a label column."""
        return self._labels

    def item(self, index: int) -> Image.Image:
        """Decode one row."""
        if not 0 <= index < len(self):
            raise IndexError(f"image {index} of {len(self)}")
        value = self._table.column(self._column)[index].as_py()
        return decode_cell(*cell_of(value), self._root)

    def _file(self, name: str) -> Path:
        file = file_below(name, self._root)
        if file is None or not file.is_file():
            raise DataError(
                f"{self._root / 'state.json'} names what is no file of the data set",
                got=name,
                expected=f"files in {self._root}",
                fix="save the data set again",
            )
        return file

    def _map(self) -> None:
        tables = []
        for file in self._files:
            try:
                tables.append(pa.ipc.open_stream(pa.memory_map(str(file))).read_all())
            except (OSError, pa.ArrowInvalid) as error:
                raise DataError(
                    f"{file} cannot be read as Arrow",
                    got=str(error).rstrip("."),
                    fix="save the data set again",
                ) from error
        self._table = pa.concat_tables(tables)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_table"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._map()


def _split(folder: Path) -> Path:
    listing = folder / "dataset_dict.json"
    if not listing.is_file():
        return folder
    splits = _json(listing)["splits"]
    if "train" not in splits and len(splits) != 1:
        raise DataError(
            f"{folder} has several splits",
            got=", ".join(splits),
            fix=f"name one, such as {folder / splits[0]}" if splits else "save one",
        )
    return folder / ("train" if "train" in splits else splits[0])


def _json(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(
            f"{file} cannot be read", got=str(error), fix="save the data set again"
        ) from error
