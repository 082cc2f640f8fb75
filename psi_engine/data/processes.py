"""Reading images in other processes, in order, and what to say when one of them dies."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import warnings
from collections.abc import Iterator
from multiprocessing.context import BaseContext
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from psi_engine.data.preprocess import Preprocess, to_rgb, to_tensor
from psi_engine.data.resample import can_resample
from psi_engine.data.source import CorruptImage, ImageSource
from psi_engine.errors import DataError, PsiEngineError

_WHOLE = 8
"""Images of one size in a batch below which the reader's resize is not worth its trial."""


class Read(NamedTuple):
    """A batch of images as it was read.

    ids : list of int
        The images that could be read.
    views : Tensor or None
        Their views, stacked; None when there are none.
    skipped : list of (int, str)
        The others, with reasons.
    whole : bool
        Whether the views are whole images of one size, still to be resized.
    """

    ids: list[int]
    views: Tensor | None
    skipped: list[tuple[int, str]]
    whole: bool


class Views(Dataset["Read | PsiEngineError"]):
    """Reads a whole batch per item, so that a batch crosses the process border as one tensor.

    Parameters
    ----------
    source : ImageSource
    preprocess : Preprocess
    whole : bool
        Leave the resize of images of one size, smaller than their views, to the reader.
    """

    def __init__(self, source: ImageSource, preprocess: Preprocess, whole: bool = False) -> None:
        self.source = source
        self.preprocess = preprocess
        self.whole = whole

    def __getitem__(self, chunk: list[int]) -> Read | PsiEngineError:
        try:
            return self.read(chunk)
        except PsiEngineError as error:
            return error  # raised on the other side as it is, without a worker's traceback in it

    def read(self, chunk: list[int]) -> Read:
        """Read the images of these ids, in this order."""
        ids: list[int] = []
        items: list[Image.Image | Tensor] = []
        skipped: list[tuple[int, str]] = []
        for index in chunk:
            try:
                item = self.source.item(index)
                # held small: as a view, unless all of the batch may be resized by the reader
                items.append(item if self._small(item) else self._view(item))
                ids.append(index)
            except CorruptImage as error:
                skipped.append((index, str(error)))
        images = [to_rgb(item) for item in items if isinstance(item, Image.Image)]
        sizes = {image.size for image in images}
        if len(images) == len(items) >= _WHOLE and len(sizes) == 1 and self._fits(*sizes.pop()):
            return Read(ids, torch.stack([to_tensor(image) for image in images]), skipped, True)
        views = [self._view(item) for item in items]
        for index, view in zip(ids, views, strict=True):
            if view.shape != views[0].shape or view.dtype != views[0].dtype:
                raise DataError(
                    f"the items of {self.source.name} cannot be stacked",
                    got=f"{_describe(views[0])} at {ids[0]}, {_describe(view)} at {index}",
                    expected="one shape and kind for all",
                )
        return Read(ids, torch.stack(views) if views else None, skipped, False)

    def _fits(self, width: int, height: int) -> bool:
        return can_resample(width, height, self.preprocess)

    def _small(self, item: Image.Image | Tensor) -> bool:
        return (
            self.whole
            and isinstance(item, Image.Image)
            and item.width * item.height <= self.preprocess.image_size**2
        )

    def _view(self, item: Image.Image | Tensor) -> Tensor:
        return item if isinstance(item, Tensor) else self.preprocess.view(item)


class Chunks:
    """The ids of each batch in turn, as lists: of millions of images, only these are made.

    Parameters
    ----------
    ids : Tensor, int64 (n,)
    size : int
        Ids of a batch; the last one has the rest.
    """

    def __init__(self, ids: Tensor, size: int) -> None:
        self._ids, self._size = ids, size

    def __len__(self) -> int:
        return -(-len(self._ids) // self._size)

    def __iter__(self) -> Iterator[list[int]]:
        for start in range(0, len(self._ids), self._size):
            yield self._ids[start : start + self._size].tolist()


def read_in_processes(views: Views, chunks: Chunks, workers: int, pin: bool) -> Iterator[Read]:
    """Read batches in worker processes, two of them ahead each, and hand them on in order.

    Parameters
    ----------
    views : Views
        Sent to each process by pickle.
    chunks : Chunks
        The image ids of each batch.
    workers : int
        Processes; cut to the CPUs this process may use.
    pin : bool
        Put the tensors in pinned memory, from which a GPU copies while others work.

    Raises
    ------
    DataError
        If the source cannot be pickled, or as the source raises it.
    PsiEngineError
        If a process dies.
    """
    # Forking a process with running threads (OpenMP, Arrow) can deadlock; a fork server cannot.
    served = "forkserver" in multiprocessing.get_all_start_methods()
    context: BaseContext = multiprocessing.get_context("forkserver" if served else "spawn")
    if served:
        context.set_forkserver_preload([__name__])  # import torch once, not in every worker
    loader = DataLoader(
        views,
        sampler=chunks,  # one chunk of indices is one item
        batch_size=None,
        num_workers=min(workers, _cpus(), max(1, len(chunks))),
        multiprocessing_context=context,
        pin_memory=pin,
    )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's advice on pickling, given below in short
            reads = iter(loader)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise DataError(
            f"{views.source.name} cannot be sent to worker processes",
            got=str(error),
            fix="use workers=0, or define the data set at the top level of a module",
        ) from error
    while True:
        try:
            read = next(reads, None)
        except (RuntimeError, OSError, EOFError) as error:
            if "Caught" in str(error):
                raise  # what a data set raised, with its traceback
            raise PsiEngineError(
                f"a process that decodes images of {views.source.name} died",
                got=" ".join(str(error).split()) or f"{type(error).__name__} where a batch was due",
                fix="it may be out of memory: use fewer --workers or a smaller --batch-size, or "
                "--workers 0 to see what it dies of; what is saved is kept",
            ) from error
        if read is None:
            return
        if isinstance(read, PsiEngineError):
            raise read
        yield read


def _cpus() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _describe(view: Tensor) -> str:
    return f"{str(view.dtype).removeprefix('torch.')} {tuple(view.shape)}"
