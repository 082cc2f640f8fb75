"""Tar shards as WebDataset writes them: a sample is the neighbouring members that share a key."""

from __future__ import annotations

import os
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from PIL import Image
from torch import Tensor

from psi_engine.data.classes import name_labels, read_classes
from psi_engine.data.folders import EXTENSIONS
from psi_engine.data.preprocess import decode
from psi_engine.data.source import CorruptImage, ImageSource, fingerprint_of
from psi_engine.data.tar_index import Member, read_index, shard_files
from psi_engine.errors import DataError


class ShardSource(ImageSource):
    """Images in tar shards, in the order of the shards and of the samples in them.

    Each tar is walked once for the places of its members; the list is kept in the cache folder,
    where the next process finds it. Images are read by place, in any order, so processes and
    ranks can share the shards by sharing the ids.

    Parameters
    ----------
    spec : str or Path
        A ``.tar``, a folder of them, or a pattern with braces: ``train-{000..009}.tar``,
        ``{train,val}.tar``.

    Raises
    ------
    DataError
        A shard that is missing, compressed or cut short, a sample with several images, labels
        of different kinds, or no image at all.

    Notes
    -----
    The key of a member is its path up to the first dot of its file name, what follows is its
    kind. A sample's image is the member whose kind is an image's (``jpg``, ``png``, ``webp``, …),
    its label the content of ``cls``, else ``label``, ``cls`` or ``class`` of its ``json``: whole
    numbers, or words, which are numbered in sorted order. Other kinds, such as ``txt``, are
    passed over; a label that cannot be read is unknown. A sample without an image keeps its id
    and is skipped as unreadable. Class names come from ``classes.json``, ``words.txt`` or
    ``classnames.txt`` (one a line, in the order of the labels) beside the shards.

    The fingerprint covers the names and places of all members, of each its size and its first
    and last 4 KB, the labels and the class names.

    References
    ----------
    A. Aizman, G. Maltby, T. Breuel, High Performance I/O For Large Scale Deep Learning, 2019,
    arXiv 2001.01858.
    """

    def __init__(self, spec: str | Path) -> None:
        self.name = str(spec)
        self._files = shard_files(spec)
        self._open: tuple[int, IO[bytes]] | None = None
        root = Path(os.path.commonpath([file.absolute().parent for file in self._files]))
        names = [file.absolute().relative_to(root).as_posix() for file in self._files]
        indexes = [read_index(file) for file in self._files]
        samples = [
            _sample(shard, name, list(members))
            for shard, (name, index) in enumerate(zip(names, indexes, strict=True))
            for _, members in groupby(filter(_counts, index), key=_key)
        ]
        if not any(sample.image for sample in samples):
            kinds = sorted({_kind(member) for index in indexes for member in index})
            raise DataError(
                f"no images in {spec}",
                got=f"members of kind {', '.join(kinds[:8])}" if kinds else "no members",
                expected="members such as 000001.jpg, with 000001.cls for its label",
            )
        self.keys = [sample.key for sample in samples]
        self._shards = np.array([sample.shard for sample in samples], np.int32)
        places = [(s.image.start, s.image.size) if s.image else (-1, 0) for s in samples]
        self._places = np.array(places, np.int64)  # (images, 2)
        self._labels, self.class_names = name_labels(
            [sample.label for sample in samples], read_classes(root), self.name
        )
        self.fingerprint = fingerprint_of(
            [
                "shards",
                *(
                    part
                    for name, index in zip(names, indexes, strict=True)
                    for part in (name, *(f"{m.start} {m.ends.hex()} {m.name}" for m in index))
                ),
                *(str(sample.label) for sample in samples),
                *(self.class_names or ()),
            ]
        )

    @property
    def labels(self) -> Tensor | None:
        """int64 (images,), −1 where a sample has none; None where none has one."""
        return self._labels

    def item(self, index: int) -> Image.Image:
        """Read and decode one sample's image."""
        if not 0 <= index < len(self):
            raise IndexError(f"image {index} of {len(self)}")
        start, size = self._places[index].tolist()
        if start < 0:
            raise CorruptImage("the sample holds no image")
        data = self._read(int(self._shards[index]), start, size)
        try:
            return decode(data)
        except ValueError as error:
            raise CorruptImage(str(error)) from error

    def _read(self, shard: int, start: int, size: int) -> bytes:
        """Read bytes of a shard; the one last read stays open."""
        data = b""
        reason = "its end"
        try:
            if self._open is None or self._open[0] != shard:
                self._close()
                self._open = shard, self._files[shard].open("rb")
            self._open[1].seek(start)
            data = self._open[1].read(size)
        except OSError as error:
            reason = str(error)
        if len(data) < size:
            raise DataError(
                f"the shard {self._files[shard]} changed or went away while it was read",
                got=reason,
                fix="put it back as it was and run the same command again",
            )
        return data

    def _close(self) -> None:
        if self._open is not None:
            self._open[1].close()
            self._open = None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_open": None}

    def __del__(self) -> None:
        if "_open" in self.__dict__:
            self._close()


class _Sample(NamedTuple):
    shard: int
    key: str
    image: Member | None
    label: str | None


def _counts(member: Member) -> bool:
    """Whether a member belongs to a sample: it has a kind, and is no hidden or meta file."""
    base = member.name.rpartition("/")[2]
    return "." in base and not base.startswith((".", "__"))


def _key(member: Member) -> str:
    folder, slash, base = member.name.rpartition("/")
    return folder + slash + base.partition(".")[0]


def _kind(member: Member) -> str:
    return member.name.rpartition("/")[2].partition(".")[2].lower()


def _sample(shard: int, tar: str, members: Sequence[Member]) -> _Sample:
    by_kind: dict[str, Member] = {}
    for member in members:
        if _kind(member) in by_kind:
            raise DataError(
                f"{tar} holds a file twice",
                got=f"{by_kind[_kind(member)].name} and {member.name}",
                expected="each kind once in a sample",
                fix="write the shard again with a key of its own for each sample",
            )
        by_kind[_kind(member)] = member
    images = [kind for kind in by_kind if "." + kind.rpartition(".")[2] in EXTENSIONS]
    images = [kind for kind in images if "." not in kind] or images  # jpg before mask.png
    if len(images) > 1:
        raise DataError(
            f"a sample of {tar} holds several images",
            got=", ".join(by_kind[kind].name for kind in images),
            expected="one image a sample",
            fix="write the shards again with the images you mean",
        )
    image = by_kind[images[0]] if images else None
    given = (by_kind[kind].label for kind in ("cls", "json") if kind in by_kind)
    label = next((text for text in given if text is not None), None)
    return _Sample(shard, f"{tar}/{image.name if image else _key(members[0])}", image, label)
