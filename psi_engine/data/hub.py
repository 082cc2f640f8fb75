"""Data sets by name, through Hugging Face ``datasets``: ``hf:NAME[@revision][:split][/config]``."""

from __future__ import annotations

import json
import re
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image
from torch import Tensor

from psi_engine.data.columns import cell_of, decode_cell, find_columns, read_labels
from psi_engine.data.source import ImageSource, fingerprint_of
from psi_engine.errors import DataError

PREFIX = "hf:"

_PROBES = 16
_OLDEST = 4  # of the library's versions
_FORM = re.compile(r"(?P<name>[^@:]+)(@(?P<revision>[^:]+))?(:(?P<split>[^/]+)(/(?P<config>.+))?)?")


class HubName(NamedTuple):
    """What ``hf:NAME[@revision][:split][/config]`` stands for; split ``train`` unless named."""

    name: str
    revision: str | None
    split: str
    config: str | None


def parse_name(spec: str) -> HubName:
    """Take a name apart; without a split, a third part of NAME is the configuration.

    Raises
    ------
    DataError
        It has another form.
    """
    found = _FORM.fullmatch(spec.removeprefix(PREFIX))
    if found is None:
        raise DataError(
            "not the name of a data set",
            got=repr(spec),
            expected="hf:NAME[@revision][:split][/config], such as hf:zh-plus/tiny-imagenet:valid",
        )
    name, config = found["name"], found["config"]
    local = name.startswith((".", "/", "~"))
    if not local and config is None and name.count("/") == 2:
        name, _, config = name.rpartition("/")
    return HubName(name, found["revision"], found["split"] or "train", config)


def require_datasets() -> None:
    """Raise a DataError when the library ``datasets`` is not installed, or runs foreign code.

    Before version 4 it ran the script that a data set may bring.
    """
    fix = (
        f"pip install 'datasets>={_OLDEST}'; or give the data set's Parquet files, or a folder "
        "that save_to_disk wrote, with --data PATH"
    )
    try:
        found = version("datasets")
    except PackageNotFoundError:
        raise DataError(
            "data sets by hf:NAME need the library datasets, which is not installed", fix=fix
        ) from None
    if int(found.partition(".")[0]) < _OLDEST:
        raise DataError(
            "this version of the library datasets runs code that data sets bring",
            got=found,
            expected=f"{_OLDEST} or later",
            fix=fix,
        )


class HubSource(ImageSource):
    """A data set that ``datasets.load_dataset`` finds: on the hub, in its cache, in a folder.

    Parameters
    ----------
    spec : str
        ``hf:NAME[@revision][:split][/config]``.

    Raises
    ------
    DataError
        The library is not there, or does not find or reach the data set, or it has no images.

    Notes
    -----
    Without a network the library takes its cache, at once if ``HF_HUB_OFFLINE=1``. No code of
    the data set is run. Rows may name files in a local data set or in the library's caches alone.
    Columns and labels are found as in Parquet. The fingerprint covers the number of rows, the
    features, the labels, and the encoded bytes of 16 rows spread evenly, not the name: name a
    ``@revision`` to be sure of the others.
    """

    def __init__(self, spec: str) -> None:
        require_datasets()
        self.name = spec
        asked = parse_name(spec)
        rows = _load(asked, spec)
        features = rows.features.to_dict()
        self._column, label = find_columns(rows.features.arrow_schema, features, spec)
        if len(rows) == 0:
            raise DataError(f"no rows in {spec}", fix="name another split")
        self.keys = [f"{asked.name}:{asked.split}#{row}" for row in range(len(rows))]
        labels = None
        if label is not None:
            labels = rows.select_columns([label]).with_format("arrow")[:].column(0)
        self._labels, self.class_names = read_labels(labels, features.get(label or ""), None, spec)
        encoded = rows.select_columns([self._column])
        if features[self._column].get("_type") == "Image":
            encoded = encoded.cast_column(self._column, _library().Image(decode=False))
        self._rows = encoded
        self._roots = _roots(Path(asked.name).expanduser())
        last = len(rows) - 1
        self.fingerprint = fingerprint_of(
            [
                "hub",
                str(len(rows)),
                json.dumps(features, sort_keys=True),
                b"" if self._labels is None else self._labels.numpy().tobytes(),
                *(self._cell(i * last // (_PROBES - 1))[0] or b"" for i in range(_PROBES)),
            ]
        )

    @property
    def labels(self) -> Tensor | None:
        """int64 (images,), −1 where a row has none; None without a label column."""
        return self._labels

    def item(self, index: int) -> Image.Image:
        """Decode one row."""
        if not 0 <= index < len(self):
            raise IndexError(f"image {index} of {len(self)}")
        return decode_cell(*self._cell(index), *self._roots)

    def _cell(self, index: int) -> tuple[bytes | None, str | None]:
        return cell_of(self._rows[index][self._column])


def _load(asked: HubName, spec: str) -> Any:
    path = Path(asked.name).expanduser()
    try:
        return _library().load_dataset(
            str(path) if path.exists() else asked.name,
            asked.config,
            split=asked.split,
            revision=asked.revision,
        )
    except Exception as error:
        # The library passes on what a dozen others raise: of the hub, of requests, of Arrow.
        first = str(error).strip().splitlines()[:1]
        raise DataError(
            f"{spec} cannot be loaded",
            got=f"{type(error).__name__}: {first[0] if first else ''}",
            fix="check name, split and configuration, and for a gated one that you are logged in; "
            "without a network HF_HUB_OFFLINE=1 takes the library's cache, and --data PATH "
            "Parquet files or a folder that save_to_disk wrote",
        ) from error


def _roots(path: Path) -> list[Path]:
    """Where the files lie that rows may name: the data set, if it is local, and the caches."""
    local = [path if path.is_dir() else path.parent] if path.exists() else []
    hub = import_module("huggingface_hub.constants")
    return [*local, Path(_library().config.HF_DATASETS_CACHE), Path(hub.HF_HUB_CACHE)]


def _library() -> Any:
    return import_module("datasets")
