"""Data sets by name, through Hugging Face ``datasets``: ``hf:NAME[@revision][:split][/config]``."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image
from torch import Tensor

from psi_engine.data.columns import cell_of, decode_cell, find_columns, read_labels, signs_of
from psi_engine.data.source import ImageSource, fingerprint_of
from psi_engine.errors import DataError
from psi_engine.network import unreachable_reason

PREFIX = "hf:"

_OLDEST = 4  # of the library's versions
_BUILDERS = ("arrow", "csv", "imagefolder", "json", "pandas", "parquet", "text", "webdataset")
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
    Where the hub cannot be reached the library takes its cache. No code of the data set is run,
    and no image decoded by it. Rows may name files in a local data set or in the library's caches
    alone. Columns and labels are found as in Parquet. The fingerprint covers the number of rows,
    the features, the labels, and of the images what
    :func:`~psi_engine.data.columns.signs_of` takes, not the name nor where the rows lie (the
    library's own fingerprint names paths and times): name a ``@revision`` to be sure of the rest.
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
        self.fingerprint = fingerprint_of(
            [
                "hub",
                str(len(rows)),
                json.dumps(features, sort_keys=True),
                b"" if self._labels is None else self._labels.numpy().tobytes(),
                *signs_of(encoded.with_format("arrow")[:].column(0), *self._roots),
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
    here = path.exists()
    if asked.name in _BUILDERS and not here:
        raise DataError(
            f"{asked.name} is a kind of data set, not one",
            got=spec,
            fix=f"name the folder that holds it: {PREFIX}FOLDER, or --data FOLDER",
        )
    constants = import_module("huggingface_hub.constants")
    reason = None if here or constants.HF_HUB_OFFLINE else unreachable_reason(constants.ENDPOINT)
    try:
        # Libraries retry for most of a minute before they look into their cache.
        with _offline() if reason is not None else nullcontext():
            return _library().load_dataset(
                str(path) if here else asked.name,
                asked.config,
                split=asked.split,
                revision=asked.revision,
            )
    except Exception as error:
        # The library passes on what a dozen others raise: of the hub, of requests, of Arrow.
        said = f"{type(error).__name__}: {''.join(str(error).strip().splitlines()[:1])}"
        if reason is not None:
            raise DataError(
                f"{spec} is not in the library's cache and cannot be downloaded",
                got=f"{reason} ({said})",
                fix="give --data PATH: Parquet files, a folder of images, or one that save_to_disk "
                "wrote; or fill the cache where there is a network (HF_HOME says where it is)",
            ) from error
        raise DataError(
            f"{spec} cannot be loaded",
            got=said,
            fix="check name, split and configuration, and for a gated one that you are logged in; "
            "without a network HF_HUB_OFFLINE=1 takes the library's cache, and --data PATH "
            "Parquet files or a folder that save_to_disk wrote",
        ) from error


@contextmanager
def _offline() -> Iterator[None]:
    """Tell the libraries, which ask the environment on import alone, that there is no network."""
    asked = [import_module("huggingface_hub.constants"), _library().config]
    before = [module.HF_HUB_OFFLINE for module in asked]
    for module in asked:
        module.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        for module, value in zip(asked, before, strict=True):
            module.HF_HUB_OFFLINE = value


def _roots(path: Path) -> list[Path]:
    """Where the files lie that rows may name: the data set, if it is local, and the caches."""
    local = [path if path.is_dir() else path.parent] if path.exists() else []
    hub = import_module("huggingface_hub.constants")
    return [*local, Path(_library().config.HF_DATASETS_CACHE), Path(hub.HF_HUB_CACHE)]


def _library() -> Any:
    return import_module("datasets")
