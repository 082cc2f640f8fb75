"""Images as files: a flat folder, one folder per class, or Tiny-ImageNet's own layout."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from psi_engine.data.classes import read_classes
from psi_engine.data.preprocess import decode
from psi_engine.data.source import CorruptImage, ImageSource, ends_of, fingerprint_of, gone
from psi_engine.errors import DataError

EXTENSIONS = frozenset(
    {".jpg", ".jpeg", ".png", ".bmp", ".gif", ".ppm", ".pgm", ".tif", ".tiff", ".webp"}
)
"""Endings, in lower case, of files taken for images."""

_SPLITS = frozenset({"train", "val", "valid", "validation", "test"})


class FolderSource(ImageSource):
    """Images in a folder, in the order of their relative paths, compared part by part.

    Parameters
    ----------
    path : Path
        A folder in one of the layouts below.

    Raises
    ------
    DataError
        If the folder is empty, holds no image, or mixes layouts.

    Notes
    -----
    ==================  ====================================================================
    one per class       ``CLASS/…/image.jpg``; labels number the sorted class folders
    Tiny-ImageNet       ``train/WNID/images/*.JPEG``; ``val/`` with ``val_annotations.txt``
    flat                ``image.jpg``; no labels
    ==================  ====================================================================

    A folder whose only subfolders are splits (``train``, ``val``, ``test``) stands for its
    ``train``; give ``FOLDER/val`` for another. Readable class names come from ``classes.json``
    or ``words.txt`` in the folder or its parent. Hidden files are passed over.

    The fingerprint covers the relative paths, the labels, the class names, and of each file its
    size and its first and last 4 KB.
    """

    def __init__(self, path: Path) -> None:
        self.name = str(path)
        self._root = _split_folder(path)
        listing = sorted(_walk(self._root))
        if not listing:
            raise _no_images(path)
        classes: list[str] | None
        if (self._root / "val_annotations.txt").is_file():
            classes, label_of = _annotated(self._root)
            found = [label_of.get(parts[-1], -1) for parts in listing]
        else:
            classes, found = _by_folder(self._root, listing)
        self._parts = listing
        self.keys = [_text("/".join(parts)) for parts in self._parts]
        self._labels = None if classes is None else torch.tensor(found, dtype=torch.int64)
        self.class_names = None if classes is None else _readable(self._root, classes)
        self.fingerprint = fingerprint_of(
            [
                "folder",
                *self.keys,
                *(ends_of(os.path.join(self._root, *parts)) for parts in listing),
                *(self.class_names or ()),
                *map(str, found if classes is not None else ()),
            ]
        )

    @property
    def labels(self) -> Tensor | None:
        """int64 (images,), −1 where unknown; None for a flat folder."""
        return self._labels

    def item(self, index: int) -> Image.Image:
        """Read and decode one file."""
        if not 0 <= index < len(self):
            raise IndexError(f"image {index} of {len(self)}")
        file = self._root.joinpath(*self._parts[index])
        try:
            return decode(file.read_bytes())
        except (PermissionError, ValueError) as error:
            raise CorruptImage(str(error)) from error
        except OSError as error:
            raise gone(file, error) from error


def files_ending(folder: Path, endings: tuple[str, ...]) -> list[Path]:
    """Files below a folder with one of some endings, in any case, by relative path; none hidden."""
    found = []
    for place, folders, names in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        wanted = [n for n in names if n.lower().endswith(endings) and not n.startswith(".")]
        found += [Path(place, name) for name in wanted]
    return sorted(found, key=lambda file: file.relative_to(folder).parts)


def _walk(root: Path, parts: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    with os.scandir(root) as entries:
        for entry in entries:
            if entry.name.startswith((".", "__MACOSX")):
                continue
            if entry.is_dir():
                yield from _walk(Path(entry.path), (*parts, entry.name))
            elif os.path.splitext(entry.name)[1].lower() in EXTENSIONS and entry.is_file():
                yield (*parts, entry.name)


def _split_folder(path: Path) -> Path:
    folders = {entry.name for entry in path.iterdir() if entry.is_dir() and entry.name[0] != "."}
    if "train" in folders and folders <= _SPLITS:
        return path / "train"
    return path


def _no_images(path: Path) -> DataError:
    files = [entry for entry in path.rglob("*") if entry.is_file()]
    if not files:
        return DataError(f"the folder {path} is empty", fix="give a folder with images")
    endings = sorted({file.suffix.lower() or "(none)" for file in files})[:8]
    return DataError(
        f"no images in {path}",
        got=f"{len(files)} files ending in {', '.join(endings)}",
        expected="Parquet, or images ending in " + ", ".join(sorted(EXTENSIONS)),
    )


def _by_folder(root: Path, listing: list[tuple[str, ...]]) -> tuple[list[str] | None, list[int]]:
    loose = sum(len(parts) == 1 for parts in listing)
    if loose == len(listing):
        return None, []
    if loose:
        stray = next(parts[0] for parts in listing if len(parts) == 1)
        raise DataError(
            f"{root} holds images both beside and inside its subfolders",
            got=f"{loose} beside them, such as {stray}, and {len(listing) - loose} inside",
            expected="all of them in one folder per class, or all in one flat folder",
        )
    classes = sorted({parts[0] for parts in listing})
    if classes == ["images"]:
        return None, []
    number = {name: i for i, name in enumerate(classes)}
    return classes, [number[parts[0]] for parts in listing]


def _annotated(root: Path) -> tuple[list[str], dict[str, int]]:
    file = root / "val_annotations.txt"
    rows = [line.split("\t") for line in file.read_text(encoding="utf-8").splitlines() if line]
    short = next((i for i, row in enumerate(rows) if len(row) < 2), None)
    if short is not None:
        raise DataError(
            f"{file} is not in Tiny-ImageNet's form",
            got=f"line {short + 1}: {rows[short][0]!r}",
            expected="image name, tab, WordNet id, tab, box",
        )
    ids = root.parent / "wnids.txt"
    # Sorted, so that val has the same numbers as train, whose numbers are its sorted folders.
    classes = sorted(ids.read_text().split() if ids.is_file() else {row[1] for row in rows})
    number = {name: i for i, name in enumerate(classes)}
    return classes, {row[0]: number.get(row[1], -1) for row in rows}


def _readable(root: Path, classes: list[str]) -> tuple[str, ...]:
    for folder in (root, root.parent):
        names = read_classes(folder)
        if names is not None and any(name in names.by_folder for name in classes):
            return tuple(map(_text, names.rename(classes)))
    return tuple(map(_text, classes))


def _text(name: str) -> str:
    r"""A file's name as text for tables: bytes that are no UTF-8 as ``\xNN``."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")
