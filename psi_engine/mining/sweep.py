"""One sweep over images: forward passes of some layers, every output handed on as it arises."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from psi_engine.config import Precision
from psi_engine.data import Batch, ImageSource, Preprocess, batches
from psi_engine.errors import CorruptDataError
from psi_engine.hooks import as_maps, capture
from psi_engine.mining.precision import arithmetic
from psi_engine.types import ActivationShape

Take = Callable[[str, Tensor, Tensor], None]
"""Takes a layer's name, its maps (batch, channels, H, W) and the images' ids, on the CPU."""


@dataclass
class Sweep:
    """A model at its images; call :meth:`over` any number of times.

    waited, spent : seconds that sweeps have waited for images, and taken in all.
    """

    module: nn.Module
    source: ImageSource
    preprocess: Preprocess
    device: torch.device
    micro: int
    shapes: Mapping[str, ActivationShape]
    batch_size: int
    workers: int
    skipped: dict[int, str]
    waited: float = field(default=0.0, init=False)
    spent: float = field(default=0.0, init=False)
    _known: int = field(default=0, init=False)  # how many were skipped at the last look

    def __post_init__(self) -> None:
        self._read = torch.zeros(len(self.source), dtype=torch.bool)

    def inherit(self, *covered: Tensor) -> None:
        """Take images (int64 ids) as read by an earlier process, but for those it skipped."""
        for images in covered:
            self._read[images] = True
        self._read[torch.tensor([*self.skipped], dtype=torch.int64)] = False

    def over(
        self, indices: Tensor, layers: Sequence[str], turns: Sequence[tuple[Precision, Take]]
    ) -> Iterator[int]:
        """Run the model on images, once for each turn, no further than the last layer.

        Parameters
        ----------
        indices : Tensor, int64 (n,)
            Ids of the images, ascending.
        layers : sequence of str
        turns : sequence of (Precision, callable)
            Every micro-batch runs in each arithmetic before the next one is met.

        Yields
        ------
        int
            Id of the last image that is done, after every micro-batch.

        Raises
        ------
        CorruptDataError
            An image that an earlier sweep or process read cannot be read any more.
        """
        if not len(indices):
            return
        began, before = time.perf_counter(), self.waited
        loaded = batches(
            self.source,
            self.preprocess,
            batch_size=self.batch_size,
            workers=self.workers,
            indices=indices,
            skipped=self.skipped,
            device=self.device,
        )
        earlier = self.spent
        current: Take
        ids = torch.empty(0, dtype=torch.int64)

        # Called by hooks, amid the forward pass: its arithmetic and its tensors without versions
        # must not reach the buffers.
        @torch.autocast(self.device.type, enabled=False)
        @torch.inference_mode(False)
        @torch.no_grad()
        def consume(layer: str, output: Tensor) -> None:
            current(layer, as_maps(output, self.shapes[layer])[: len(ids)], ids)

        with capture(self.module, layers, consume) as outputs:
            for number, (ids, views) in enumerate(micro_batches(loaded, self.micro)):
                x = prepare(views, self.preprocess, self.device, self.micro)
                for precision, current in turns:
                    with torch.inference_mode(), arithmetic(precision, self.device):
                        if number == 0 and current is turns[0][1]:
                            outputs.run(x[:1])  # counts how often each layer is called
                        outputs.run(x)
                self._refuse_gone()
                self._read[ids] = True
                self.waited = before + loaded.waited
                self.spent = earlier + time.perf_counter() - began
                yield int(ids[-1])
        self._refuse_gone()

    def _refuse_gone(self) -> None:
        """Layers, or the parts of a refinement, would have seen different images."""
        if len(self.skipped) == self._known:
            return
        self._known = len(self.skipped)
        for image in (image for image in self.skipped if self._read[image]):
            raise CorruptDataError(
                "an image that was readable in an earlier pass no longer is",
                got=f"{self.source.keys[image]}: {self.skipped[image]}",
                fix="restore the data set, then run the same command again",
            )

    @property
    def bottleneck(self) -> str:
        """What holds the sweep up, for the progress line; empty while there is nothing to say."""
        if not self.spent:
            return ""
        share = self.waited / self.spent
        what = "decoding" if share > 0.5 else "the model"
        return f"{what} is the bottleneck ({share:.0%} waiting for images)"


def prepare(views: Tensor, preprocess: Preprocess, device: torch.device, size: int) -> Tensor:
    """Normalised input of exactly ``size`` rows; the last ones repeat row 0 where rows lack."""
    views = views.to(device, non_blocking=True)
    x = views.to(torch.float32) if views.is_floating_point() else preprocess.normalise(views)
    if len(x) < size:
        x = torch.cat([x, x[:1].expand(size - len(x), *x.shape[1:])])
    # Convolutions of deep networks run 1.3 to 2 times as fast in this layout on a CPU.
    return x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x.contiguous()


def micro_batches(loaded: Iterable[Batch], size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Cut a stream of batches into batches of ``size`` images, the last one smaller."""
    ids: list[Tensor] = []
    views: list[Tensor] = []
    held = 0
    for batch in loaded:
        ids.append(batch.image_ids)
        views.append(batch.views)
        held += len(batch.image_ids)
        if held < size:
            continue
        whole = held - held % size
        all_ids, all_views = torch.cat(ids), torch.cat(views)
        yield from zip(all_ids[:whole].split(size), all_views[:whole].split(size), strict=True)
        ids, views, held = [all_ids[whole:]], [all_views[whole:]], held - whole
    if held:
        yield torch.cat(ids), torch.cat(views)
