"""From a source to batches of views, in order, with what it cost the reader in time."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from psi_engine.data.preprocess import Preprocess
from psi_engine.data.processes import Chunks, Read, Views, read_in_processes
from psi_engine.data.resample import resample
from psi_engine.data.source import ImageSource
from psi_engine.errors import CorruptDataError, DataError

MAX_SKIPPED = 0.1
"""Share of unreadable images past which a run stops."""


class Batch(NamedTuple):
    """Some images of a source, in source order.

    image_ids : int64 (batch,), on the CPU
    views : uint8 (batch, 3, S, S) to be normalised by the preprocess, or float32 (batch, …)
        from a tensor data set, to go to the model as it is
    """

    image_ids: Tensor
    views: Tensor


class Loader(Iterator[Batch]):
    """The batches of a source, to be gone through once.

    Attributes
    ----------
    waited : float
        Seconds the reader has spent waiting for batches so far. Beside the seconds it has been
        at work this says whether decoding or the model is the bottleneck. With ``workers = 0``
        all decoding is waited for; with workers only what they could not do ahead.
    """

    def __init__(self, stream: Iterator[Batch]) -> None:
        self.waited = 0.0
        self._stream = stream

    def __next__(self) -> Batch:
        started = time.perf_counter()
        try:
            return next(self._stream)
        finally:
            self.waited += time.perf_counter() - started


def batches(
    source: ImageSource,
    preprocess: Preprocess,
    *,
    batch_size: int,
    workers: int = 0,
    indices: Tensor | None = None,
    skipped: dict[int, str],
    max_skipped: float = MAX_SKIPPED,
    device: torch.device | None = None,
) -> Loader:
    """Read a source batch by batch.

    Parameters
    ----------
    source : ImageSource
    preprocess : Preprocess
        Resize and crop of the images.
    batch_size : int
        Images asked for at once; a batch is smaller where images are corrupt, and at the end.
    workers : int
        Processes that decode, two batches each ahead of the reader; 0 = in this one. More than
        the machine has CPUs is cut to that. Order and values do not depend on it. A script that
        asks for workers needs the usual ``if __name__ == "__main__":``, since new processes
        import it.
    indices : Tensor, optional
        int64 (n,), image ids to read, in this order; all of them by default.
    skipped : dict
        Filled with image id → reason for each image that could not be read.
    max_skipped : float
        Share of the source's images that may be corrupt, those already in ``skipped`` included.
    device : torch.device, optional
        Where the views are wanted. On CUDA they go there from pinned memory on a stream of
        their own, one batch ahead, and images of one size are resized there, to the same bits;
        by default they stay on the CPU.

    Returns
    -------
    Loader
        An iterator of :class:`Batch`, none of them empty. It reads nothing before the first is
        asked for. While it is read it raises

        - CorruptDataError as soon as more than ``max_skipped`` of the images are corrupt;
        - DataError if a data set's tensors have different shapes, or it cannot be sent to
          workers;
        - PsiEngineError if a worker dies.

    Raises
    ------
    DataError
        If ``batch_size`` is below 1.
    """
    if batch_size < 1:
        raise DataError("batch_size is too small", got=batch_size, expected="at least 1")
    wanted = torch.arange(len(source)) if indices is None else indices
    pin = device is not None and device.type == "cuda"
    views = Views(source, preprocess, whole=pin)
    chunks = Chunks(wanted, batch_size)
    reads = read_in_processes(views, chunks, workers, pin) if workers else map(views.read, chunks)
    good = _readable(reads, source, skipped, max_skipped)
    if pin and device is not None:
        return Loader(_sent_ahead(good, preprocess, device))
    return Loader(_sent(good, preprocess, device))


def _readable(
    reads: Iterator[Read], source: ImageSource, skipped: dict[int, str], max_skipped: float
) -> Iterator[Read]:
    """Note the images that cannot be read, and stop at too many of them."""
    for read in reads:
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
            yield read


def _batch(read: Read, views: Tensor, preprocess: Preprocess) -> Batch:
    ids = torch.tensor(read.ids, dtype=torch.int64)
    return Batch(ids, resample(views, preprocess) if read.whole else views)


def _sent(
    reads: Iterator[Read], preprocess: Preprocess, device: torch.device | None
) -> Iterator[Batch]:
    for read in reads:
        assert read.views is not None
        yield _batch(read, read.views if device is None else read.views.to(device), preprocess)


def _sent_ahead(
    reads: Iterator[Read], preprocess: Preprocess, device: torch.device
) -> Iterator[Batch]:
    """Copy and resize the next batch on the GPU while the reader works on the last one."""
    own = torch.cuda.Stream(device)

    def send(read: Read) -> Batch:
        assert read.views is not None
        pinned = read.views if read.views.is_pinned() else read.views.pin_memory()
        with torch.cuda.stream(own):
            return _batch(read, pinned.to(device, non_blocking=True), preprocess)

    def hand_over(batch: Batch) -> Batch:
        reader = torch.cuda.current_stream(device)
        reader.wait_stream(own)
        # Its memory came from the other stream: it must not be used again before this one is done.
        batch.views.record_stream(reader)
        return batch

    sent: Batch | None = None
    for read in reads:
        ready = None if sent is None else hand_over(sent)  # waits for its own work alone
        sent = send(read)
        if ready is not None:
            yield ready
    if sent is not None:
        yield hand_over(sent)
