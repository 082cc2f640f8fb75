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
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from psi_engine.data.preprocess import Preprocess
from psi_engine.data.source import CorruptImage, ImageSource
from psi_engine.errors import DataError, PsiEngineError


class Read(NamedTuple):
    """A batch of images as it was read.

    ids : list of int
        The images that could be read.
    views : Tensor or None
        Their views, stacked; None when there are none.
    skipped : list of (int, str)
        The others, with reasons.
    """

    ids: list[int]
    views: Tensor | None
    skipped: list[tuple[int, str]]


class Views(Dataset["Read | PsiEngineError"]):
    """Reads a whole batch per item, so that a batch crosses the process border as one tensor."""

    def __init__(self, source: ImageSource, preprocess: Preprocess) -> None:
        self.source = source
        self.preprocess = preprocess

    def __getitem__(self, chunk: list[int]) -> Read | PsiEngineError:
        try:
            return self.read(chunk)
        except PsiEngineError as error:
            return error  # raised on the other side as it is, without a worker's traceback in it

    def read(self, chunk: list[int]) -> Read:
        """Read the images of these ids, in this order."""
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
        return Read(ids, torch.stack(views) if views else None, skipped)


def read_in_processes(
    views: Views, chunks: list[list[int]], workers: int, pin: bool
) -> Iterator[Read]:
    """Read batches in worker processes, two of them ahead each, and hand them on in order.

    Parameters
    ----------
    views : Views
        Sent to each process by pickle.
    chunks : list of lists of int
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
        except RuntimeError as error:
            if "DataLoader worker" not in str(error) or "Caught" in str(error):
                raise  # what a data set raised, with its traceback
            raise PsiEngineError(
                f"a process that decodes images of {views.source.name} died",
                got=" ".join(str(error).split()),
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
