"""From what a user names to an image source."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from torch.utils.data import Dataset, IterableDataset

from psi_engine.data import hub
from psi_engine.data.arrow import ArrowSource, is_saved, saved_part
from psi_engine.data.dataset import DatasetSource
from psi_engine.data.download import cached_tiny_imagenet, download_tiny_imagenet, require_network
from psi_engine.data.folders import EXTENSIONS, FolderSource, files_ending
from psi_engine.data.hub import HubSource
from psi_engine.data.parquet import ParquetSource
from psi_engine.data.shards import ShardSource
from psi_engine.data.source import ImageSource
from psi_engine.data.spaced import SpacedSource
from psi_engine.data.streamed import StreamSource
from psi_engine.data.tar_index import COMPRESSED
from psi_engine.errors import DataError, InputError
from psi_engine.factories import import_factory, names_factory
from psi_engine.types import Progress

TINY_IMAGENET = "tiny-imagenet"

_NAMES = (
    "Parquet, tar shards, a folder of images, hf:NAME, package.module:factory, or "
    "'tiny-imagenet' to download it"
)


def needs_download(spec: object) -> bool:
    """Whether opening ``spec`` may use the network."""
    if isinstance(spec, str) and spec.startswith(hub.PREFIX):
        return _local_folder(spec) is None
    return spec == TINY_IMAGENET and cached_tiny_imagenet() is None


def require_download(spec: str) -> None:
    """Check what a download of ``spec`` needs: a network, or the library that does it.

    Raises
    ------
    DataError
        Tiny-ImageNet's server is out of reach, or ``datasets`` is not installed.
    """
    if spec == TINY_IMAGENET:
        require_network()
    else:
        hub.parse_name(spec)
        hub.require_datasets()  # it may have the data set in its cache: let it see for itself


def open_source(
    spec: str | Path | Dataset[Any] | ImageSource,
    max_images: int | None = None,
    progress: Progress | None = None,
) -> ImageSource:
    """Open a collection of images.

    Parameters
    ----------
    spec : str, Path, Dataset or ImageSource
        A Parquet file or a folder of them; a ``.tar``, a folder of tars or a pattern such as
        ``train-{000..009}.tar``; a folder of images, flat, one per class or in Tiny-ImageNet's
        layout; a folder that ``save_to_disk`` of ``datasets`` wrote;
        ``hf:NAME[@revision][:split][/config]``; ``tiny-imagenet``, which is downloaded once; a
        torch Dataset, map-style or iterable; a source, which is handed back; or
        ``package.module:factory``, where ``factory()`` returns a Dataset or a source.
    max_images : int, optional
        Use only so many images, at even distances over the source; of an iterable Dataset the
        first.
    progress : callable, optional
        Called during a download, and while an iterable Dataset is counted.

    Returns
    -------
    ImageSource

    Raises
    ------
    DataError
        If there is nothing there, or nothing that can be read as images; a factory that cannot
        be found, that raises an error, or that returns something else.
    """
    if max_images is not None and max_images < 1:
        raise DataError("max_images is too small", got=max_images, expected="at least 1")
    if isinstance(spec, str) and _is_factory(spec):
        spec = _from_factory(spec)
    if isinstance(spec, IterableDataset):
        return StreamSource(spec, max_images, progress)
    source = _open(spec, progress)
    if max_images is None or max_images >= len(source):
        return source
    return SpacedSource(source, max_images)


def _open(spec: str | Path | Dataset[Any] | ImageSource, progress: Progress | None) -> ImageSource:
    if isinstance(spec, ImageSource):
        return spec
    if not isinstance(spec, str | Path):
        return _torch_dataset(spec)
    if spec == TINY_IMAGENET:
        return FolderSource(download_tiny_imagenet(progress=progress))
    if isinstance(spec, str) and spec.startswith(hub.PREFIX):
        folder = _local_folder(spec)
        return HubSource(spec) if folder is None else ArrowSource(folder)
    path = Path(spec).expanduser()
    if path.name.endswith((".tar", *COMPRESSED)) and not path.is_dir():
        return ShardSource(spec)
    if not path.exists():
        raise DataError(
            f"no such file or folder: {path}",
            expected=_NAMES,
        )
    if path.is_dir():
        return _folder(path)
    if path.suffix.lower() == ".parquet":
        return ParquetSource(path)
    raise DataError(
        f"{path} is not a collection of images",
        got="one image"
        if path.suffix.lower() in EXTENSIONS
        else f"a {path.suffix or 'plain'} file",
        expected="a Parquet file, a .tar or a folder",
    )


def _is_factory(spec: str) -> bool:
    known = spec.startswith(hub.PREFIX) or os.path.lexists(spec)  # a path may hold a colon
    return names_factory(spec) and not known


def _from_factory(spec: str) -> Dataset[Any] | ImageSource:
    factory = import_factory(spec, DataError, _NAMES)
    here = os.getcwd()
    if here not in sys.path:
        # Processes that decode images search what this one does, for the data set's own module.
        sys.path.append(here)
    try:
        made = factory()
    except InputError:
        raise
    except Exception as error:  # whatever a factory raises
        raise DataError(
            f"the factory {spec} failed",
            got=f"{type(error).__name__}: {error}",
            expected="a data set from factory(), without arguments",
        ) from error
    if not isinstance(made, Dataset | ImageSource):
        raise DataError(
            f"{spec} did not return a data set",
            got=f"{type(made).__module__}.{type(made).__qualname__}",
            expected="a torch Dataset or IterableDataset, or a psi_engine.data.ImageSource",
        )
    return made


def _folder(path: Path) -> ImageSource:
    if is_saved(path):
        return ArrowSource(path)
    tables = files_ending(path, (".parquet",))
    tars = files_ending(path, (".tar", *COMPRESSED))
    if not tables and not tars:
        return FolderSource(path)
    source = ParquetSource(path) if tables and not tars else None
    named = set() if source is None else set(source.keys)  # rows may name files beside them
    images = files_ending(path, tuple(EXTENSIONS))
    images = [file for file in images if file.relative_to(path).as_posix() not in named]
    kinds = {"Parquet": tables, "tar": tars, "image": images}
    found = [f"{len(x)} {kind} files, such as {x[0]}" for kind, x in kinds.items() if x]
    if len(found) > 1:
        raise DataError(
            f"{path} holds images of several kinds",
            got="; ".join(found),
            expected="one kind",
            fix="name the file or the folder you mean, or move the others elsewhere",
        )
    return ShardSource(path) if source is None else source


def _local_folder(spec: str) -> Path | None:
    """The folder a ``hf:`` name stands for, if ``save_to_disk`` wrote it: no library needed."""
    asked = hub.parse_name(spec)
    path = Path(asked.name).expanduser()
    if not is_saved(path):
        return None
    return saved_part(path, asked.split, asked.config)


def _torch_dataset(spec: Any) -> ImageSource:
    if hasattr(spec, "__getitem__"):
        return DatasetSource(spec)
    raise DataError(
        "not a collection of images",
        got=f"{type(spec).__module__}.{type(spec).__qualname__}",
        expected="a path, a name, or a torch Dataset or IterableDataset",
    )
