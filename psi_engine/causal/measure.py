"""Run swapped images through the network and read each target site's activation.

Images run in float32, in the micro-batches that mining in fp32 uses, of one fixed size, so that an
activation does not depend on what else is swapped. Of a run mined in fp32 on the same kind of
device an untouched host gives the value that was mined; one mined in tf32, fp16 or bf16 has other
roundings, and the largest change is told. Only the target channel at the target site is read.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from psi_engine.causal.paste import paste
from psi_engine.data import Preprocess
from psi_engine.hooks import as_maps, capture, evaluating
from psi_engine.mining import MICRO_BATCH
from psi_engine.mining.precision import exact_fp32
from psi_engine.mining.sweep import prepare
from psi_engine.ops.crops import crop
from psi_engine.types import ActivationShape

BLANK = -1
"""Donor of a square that is blanked: it is filled with the colour that normalises to zero."""


@dataclass(frozen=True)
class Edits:
    """Changes of one square each, and the unit that is read: one row per forward pass.

    host, donor : int64 (n,), rows of the views; donor −1 = blank. target, source : int64 (n, 4),
    the square that is replaced and the one it is replaced with. weights : int64 (n,), row of the
    weights. channel, u, v : int64 (n,), the unit.
    """

    host: Tensor
    donor: Tensor
    target: Tensor
    source: Tensor
    weights: Tensor
    channel: Tensor
    u: Tensor
    v: Tensor

    def __len__(self) -> int:
        return len(self.host)


def activations(
    module: nn.Module,
    layer: str,
    shape: ActivationShape,
    preprocess: Preprocess,
    views: Tensor,
    edits: Edits,
    weights: Tensor,
    *,
    device: torch.device,
    progress: Callable[[int], None] | None = None,
) -> Tensor:
    """Activation of each edit's unit on its edited image.

    Parameters
    ----------
    module : nn.Module
        Run in eval mode on ``device``, in float32; its modes are put back.
    layer : str
        The layer of the units; nothing behind it is computed.
    shape : ActivationShape
        Its layout.
    preprocess : Preprocess
    views : Tensor, uint8 (images, 3, S, S)
        What hosts and donors are rows of.
    edits : Edits
        Squares of one side.
    weights : Tensor, int32 (kinds, side, side)
        Of the blends, see :func:`psi_engine.causal.paste.blend_weights`; zeros change nothing.
    progress : callable, optional
        ``progress(edits done)``.

    Returns
    -------
    Tensor
        float32 (n,) on the CPU.
    """
    micro = MICRO_BATCH[device.type]
    views, weights = views.to(device), weights.to(device)
    mean = torch.tensor(preprocess.mean, dtype=torch.float64)
    blank = (mean * 255).round().to(torch.uint8).to(device)[None, :, None, None]
    out = torch.empty(len(edits))
    with evaluating(module.to(device)), exact_fp32(), capture(module, [layer]) as outputs:
        for start in range(0, len(edits), micro):
            rows = slice(start, start + micro)
            part = Edits(*(getattr(edits, name)[rows].to(device) for name in vars(edits)))
            squares = crop(views, part.donor.clamp(min=0), part.source)
            squares = torch.where((part.donor == BLANK)[:, None, None, None], blank, squares)
            images = paste(views[part.host], squares, part.target, weights[part.weights])
            with torch.inference_mode():
                outputs.run(prepare(images, preprocess, device, micro))
                maps = as_maps(outputs[layer], shape)
                each = torch.arange(len(part), device=device)
                out[rows] = maps[each, part.channel, part.u, part.v].float().cpu()
            if progress is not None:
                progress(min(start + micro, len(edits)))
    return out
