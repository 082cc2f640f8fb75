"""From a source to batches of views."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import warnings
from collections.abc import Iterator
from multiprocessing.context import BaseContext
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from psi_engine.data.preprocess import Preprocess
from psi_engine.data.source import CorruptImage, ImageSource
from psi_engine.errors import CorruptDataError, DataError

MAX_SKIPPED = 0.1
"""Share of unreadable images past which a run stops."""


class Batch(NamedTuple):
    """Some images of a source, in source order.

    image_ids : int64 (batch,)
    views : uint8 (batch, 3, S, S) to be normalised by the preprocess, or float32 (batch, …)
        from a tensor data set, to go to the model as it is
    """

    image_ids: Tensor
    views: Tensor


def batches(
    source: ImageSource,
    preprocess: Preprocess,
    *,
    batch_size: int,
    workers: int = 0,
    indices: Tensor | None = None,
    skipped: dict[int, str],
    max_skipped: float = MAX_SKIPPED,
) -> Iterator[Batch]:
    """Read a source batch by batch.

    Parameters
    ----------
    source : ImageSource
    preprocess : Preprocess
        Resize and crop of the images.
    batch_size : int
        Images asked for at once; a batch is smaller where images are corrupt, and at the end.
    workers : int
        Processes that decode; 0 = in this one. More than the machine has CPUs is cut to that.
        Order and values do not depend on it. A script that asks for workers needs the usual
        ``if __name__ == "__main__":``, since new processes import it.
    indices : Tensor, optional
        int64 (n,), image ids to read, in this order; all of them by default.
    skipped : dict
        Filled with image id → reason for each image that could not be read.
    max_skipped : float
        Share of the source's images that may be corrupt, those already in ``skipped`` included.

    Yields
    ------
    Batch
        Never empty.

    Raises
    ------
    CorruptDataError
        As soon as more than ``max_skipped`` of the images are corrupt.
    DataError
        If a data set's tensors have different shapes, or it cannot be sent to workers.
    """
    if batch_size < 1:
        raise DataError("batch_size is too small", got=batch_size, expected="at least 1")
    wanted = list(range(len(source))) if indices is None else indices.tolist()
    views = _Views(source, preprocess)
    chunks = [wanted[i : i + batch_size] for i in range(0, len(wanted), batch_size)]
    for read in _in_processes(views, chunks, workers) if workers else map(views.read, chunks):
        for index, reason in read.skipped:
            skipped[index] = reason
            if len(skipped) > max_skipped * len(source):
                raise CorruptDataError(
                    "too many images cannot be read",
                    got=f"{len(skipped)} of {len(source)}, the last one {source.keys[index]}: "
                    f"{reason}",
                    expected=f"at most {max_skipped:.0%}",
                    fix="mend or remove the broken files",
                )
        if read.views is not None:
            yield Batch(torch.tensor(read.ids, dtype=torch.int64), read.views)


class _Read(NamedTuple):
    ids: list[int]
    views: Tensor | None
    skipped: list[tuple[int, str]]


class _Views(Dataset[_Read]):
    """Reads a whole batch per item, so that a batch crosses the process border as one tensor."""

    def __init__(self, source: ImageSource, preprocess: Preprocess) -> None:
        self.source = source
        self.preprocess = preprocess

    def __getitem__(self, chunk: list[int]) -> _Read:
        return self.read(chunk)

    def read(self, chunk: list[int]) -> _Read:
        ids: list[int] = []
        views: list[Tensor] = []
        skipped: list[tuple[int, str]] = []
        for index in chunk:
            try:
                views.append(self.source.view(index, self.preprocess))
                ids.append(index)
            except CorruptImage as error:
                skipped.append((index, str(error)))
        for index, view in zip(ids, views, strict=True):
            if view.shape != views[0].shape or view.dtype != views[0].dtype:
                raise DataError(
                    f"the items of {self.source.name} cannot be stacked",
                    got=f"{_describe(views[0])} at {ids[0]}, {_describe(view)} at {index}",
                    expected="one shape and kind for all",
                )
        return _Read(ids, torch.stack(views) if views else None, skipped)


def _in_processes(views: _Views, chunks: list[list[int]], workers: int) -> Iterator[_Read]:
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
    yield from reads


def _cpus() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _describe(view: Tensor) -> str:
    return f"{str(view.dtype).removeprefix('torch.')} {tuple(view.shape)}"
