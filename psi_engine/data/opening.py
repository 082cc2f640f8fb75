"""From what a user names to an image source."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch.utils.data import Dataset

from psi_engine.data.dataset import DatasetSource
from psi_engine.data.download import cached_tiny_imagenet, download_tiny_imagenet
from psi_engine.data.folders import EXTENSIONS, FolderSource
from psi_engine.data.parquet import ParquetSource
from psi_engine.data.source import ImageSource
from psi_engine.data.spaced import SpacedSource
from psi_engine.errors import DataError
from psi_engine.types import Progress

TINY_IMAGENET = "tiny-imagenet"


def needs_download(spec: object) -> bool:
    """Whether opening ``spec`` would use the network."""
    return spec == TINY_IMAGENET and cached_tiny_imagenet() is None


def open_source(
    spec: str | Path | Dataset[Any] | ImageSource,
    max_images: int | None = None,
    progress: Progress | None = None,
) -> ImageSource:
    """Open a collection of images.

    Parameters
    ----------
    spec : str, Path, Dataset or ImageSource
        A Parquet file or a folder of them; a folder of images, flat, one per class or in
        Tiny-ImageNet's layout; ``tiny-imagenet``, which is downloaded once; a map-style torch
        Dataset; or a source, which is handed back.
    max_images : int, optional
        Use only so many images, at even distances over the source.
    progress : callable, optional
        Called during a download.

    Returns
    -------
    ImageSource

    Raises
    ------
    DataError
        If there is nothing there, or nothing that can be read as images.
    """
    if max_images is not None and max_images < 1:
        raise DataError("max_images is too small", got=max_images, expected="at least 1")
    source = _open(spec, progress)
    if max_images is None or max_images >= len(source):
        return source
    return SpacedSource(source, max_images)


def _open(spec: str | Path | Dataset[Any] | ImageSource, progress: Progress | None) -> ImageSource:
    if isinstance(spec, ImageSource):
        return spec
    if not isinstance(spec, str | Path):
        return DatasetSource(spec)
    if spec == TINY_IMAGENET:
        return FolderSource(download_tiny_imagenet(progress=progress))
    path = Path(spec).expanduser()
    if not path.exists():
        raise DataError(
            f"no such file or folder: {path}",
            expected="Parquet, a folder of images, or 'tiny-imagenet' to download it",
        )
    if path.is_dir():
        if any(path.rglob("*.parquet")):
            return ParquetSource(path)
        return FolderSource(path)
    if path.suffix.lower() == ".parquet":
        return ParquetSource(path)
    raise DataError(
        f"{path} is not a collection of images",
        got="one image"
        if path.suffix.lower() in EXTENSIONS
        else f"a {path.suffix or 'plain'} file",
        expected="a Parquet file or a folder",
    )
