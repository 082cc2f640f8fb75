"""The receptive field of a layer by the standard recursion, over the graph that runs.

One image goes through the model while every ATen operation is watched. Each tensor that depends
on the image carries a :class:`Trace`: which of its axes are rows and columns of the image, and
which pixels unit 0 of each looks at. Convolutions and pools widen the window (Araujo, Norris,
Sim, "Computing Receptive Fields of Convolutional Neural Networks", Distill 2019), branches take
the widest of theirs, operations over a whole axis (global pools, attention, group norms) see the
whole image. An operation with no rule here makes what follows unknown, never wrong.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakTensorKeyDictionary

from psi_engine.hooks import capture
from psi_engine.patches.rules import (
    COLUMNS,
    ROWS,
    Factor,
    Span,
    Trace,
    UnknownField,
    rule_of,
    tensors_in,
)


def executed_trace(module: nn.Module, layer: str, image: Tensor) -> tuple[Trace | None, Tensor]:
    """Watch a model run on one image.

    Parameters
    ----------
    module : nn.Module
        In eval mode.
    layer : str
    image : Tensor, float (1, channels, H, W)
        On the model's device; only its shape matters.

    Returns
    -------
    tuple of Trace or None and Tensor
        The trace of the layer's output, None where an operation had no rule; the output.
    """
    watch = _Watch()
    with torch.no_grad(), capture(module, [layer]) as outputs, watch:
        watch.traces[image] = Trace(
            (
                (),
                (Factor(None, image.shape[1]),),
                (Factor(ROWS, image.shape[2]),),
                (Factor(COLUMNS, image.shape[3]),),
            ),
            (Span(0.0, 1.0, 1.0), Span(0.0, 1.0, 1.0)),
        )
        outputs.run(image)
        output = outputs[layer]
    return watch.traces.get(output), output


class _Watch(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.traces: WeakTensorKeyDictionary = WeakTensorKeyDictionary()

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # True, the default, imports all of torch._dynamo (seconds) to keep it out of the dispatch.
        return False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        # An in-place operation changes its input's trace, so look before it runs.
        inputs = [x for x in tensors_in(args) if x in self.traces]
        known = all(self.traces[x] is not None for x in inputs)
        out = func(*args, **(kwargs or {}))
        if not inputs:
            return out
        found: list[tuple[Tensor, Trace | None]] = []
        for tensor in tensors_in((out,)):
            try:
                found.append((tensor, rule_of(func)(self.traces, args, tensor) if known else None))
            except UnknownField:
                found.append((tensor, None))
        for tensor, trace in found:
            self.traces[tensor] = trace
        for value, declared in zip(args, func._schema.arguments, strict=False):
            written = declared.alias_info is not None and declared.alias_info.is_write
            if written and value._base is not None:
                # Writing into a view changes what it is a view of, and there is no rule for that.
                self.traces[value._base] = None
        return out
