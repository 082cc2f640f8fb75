"""Capture activations of named layers; hooks are always removed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from psi_engine.errors import ModelError
from psi_engine.types import ActivationShape

Consume = Callable[[str, Tensor], None]
"""Takes a layer's name and its output, before any later module runs."""


class _Stop(BaseException):
    """Ends a forward pass whose wanted layers are all captured.

    Not an ``Exception``, so that a model which catches those does not swallow it.
    """


class Capture(Mapping[str, Tensor]):
    """What the latest forward pass put out, by layer name; made by :func:`capture`.

    A layer that has not run in the latest pass is missing. A layer that a pass runs more than
    once keeps its last output.
    """

    def __init__(
        self, module: nn.Module, layers: Sequence[str], consume: Consume | None = None
    ) -> None:
        self._module = module
        self._layers = tuple(layers)
        self._consume = consume
        self._outputs: dict[str, Tensor] = {}
        self._calls: Counter[str] = Counter()  # of wanted layers in this pass
        self._all_calls: Counter[str] | None = None  # of them in a whole pass, once known
        self._stopping = False

    def run(self, batch: Tensor) -> Mapping[str, Tensor]:
        """Run the model on a batch, no further than the last wanted layer.

        Parameters
        ----------
        batch : Tensor
            What the model takes.

        Returns
        -------
        Mapping of str to Tensor
            Layer name → output, this object.

        Raises
        ------
        ModelError
            If a wanted layer does not run, or ``consume`` was not given every layer's last output
            because layers ran another number of times than in the first pass.

        Notes
        -----
        The first pass runs the whole model and counts how often the wanted layers are called;
        later ones stop after as many calls. Whether a layer's output is kept depends on no batch
        as long as the model's control flow does not depend on its input.
        """
        self._stopping = self._all_calls is not None
        try:
            self._module(batch)
        except _Stop:
            pass
        else:
            if self._stopping and self._consume is not None:
                self._refuse_other_calls()
            self._all_calls = Counter(self._calls)
        finally:
            self._stopping = False
        missing = [name for name in self._layers if not self._calls[name]]
        if missing:
            raise ModelError(
                "layers that the model does not run",
                got=", ".join(missing),
                expected="layers that take part in the forward pass",
                fix="leave them out",
            )
        return self

    def _refuse_other_calls(self) -> None:
        expected = self._all_calls or Counter()
        differing = [name for name in self._layers if self._calls[name] != expected[name]]
        raise ModelError(
            "layers that the model runs more often for some images than for others",
            got=", ".join(f"{name}: {self._calls[name]} times" for name in differing),
            expected=", ".join(f"{expected[name]}" for name in differing),
            fix="leave them out",
        )

    def __getitem__(self, layer: str) -> Tensor:
        return self._outputs[layer]

    def __iter__(self) -> Iterator[str]:
        return (name for name in self._layers if name in self._outputs)

    def __len__(self) -> int:
        return len(self._outputs)

    def _begin(self, *_: Any) -> None:
        self._outputs.clear()
        self._calls.clear()

    def _keep(self, layer: str, output: Any) -> None:
        if not isinstance(output, Tensor):
            raise ModelError(
                f"the output of layer {layer!r} is not a tensor",
                got=type(output).__name__,
                expected="a tensor of rank 2, 3 or 4",
                fix="name a layer inside it",
            )
        self._calls[layer] += 1
        if self._consume is not None and self._all_calls is not None:
            if self._calls[layer] == self._all_calls[layer]:
                self._consume(layer, output)
            if self._stopping and self._calls == self._all_calls:
                raise _Stop
            return
        if self._stopping and self._calls == self._all_calls:
            self._outputs[layer] = output
            raise _Stop
        # A copy: the next module may work in place (ReLU(inplace=True), x += shortcut).
        self._outputs[layer] = output.clone()


@contextmanager
def capture(
    module: nn.Module, layers: Sequence[str], consume: Consume | None = None
) -> Iterator[Capture]:
    """Keep the outputs of layers while the context is open.

    Parameters
    ----------
    module : nn.Module
        The model.
    layers : sequence of str
        Names as ``module.named_modules()`` gives them.
    consume : callable, optional
        From the second ``.run(batch)`` on, given each output where it arises instead of a copy
        being kept: one layer's activations are in memory at a time.

    Yields
    ------
    Capture
        Layer name → output of the latest forward pass, a copy in the model's own layout; with
        gradients where they are recorded. Call ``module(batch)``, or ``.run(batch)``, which
        stops after the last wanted layer.

    Raises
    ------
    ModelError
        If a layer does not exist, or its output is not a tensor.
    """
    modules = dict(module.named_modules())
    unknown = [name for name in layers if name not in modules]
    if unknown:
        raise ModelError("unknown layers", got=", ".join(unknown), expected="names of submodules")
    found = Capture(module, layers, consume)
    handles = [module.register_forward_pre_hook(found._begin)]
    try:
        for name in layers:

            def hook(_: nn.Module, __: Any, output: Any, name: str = name) -> None:
                found._keep(name, output)

            handles.append(modules[name].register_forward_hook(hook))
        yield found
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Eval mode for the duration; every submodule gets its own mode back."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training


def activation_shape(layer: str, output: Tensor, batch: Tensor) -> ActivationShape:
    """How a layer's output is laid out.

    Parameters
    ----------
    layer : str
        Its name, for messages.
    output : Tensor
        (B, C, H, W) or channels-last (B, H, W, C) maps, (B, T, C) tokens, or (B, C).
    batch : Tensor
        The B images that went in.

    Raises
    ------
    ModelError
        If the output is of another rank, its first axis is not the batch, or it is not float.

    Notes
    -----
    Maps of square images are taken for channels-last where the two axes after the batch are
    equal and differ from the last one; (B, C, H, W) maps of square images are never so.
    """
    shape = tuple(output.shape)
    expected = "(batch, channels, height, width), (batch, tokens, channels) or (batch, channels)"
    if output.dim() not in (2, 3, 4):
        raise ModelError(
            f"the output of layer {layer!r} has rank {output.dim()}",
            got=shape,
            expected=expected,
            fix="name another layer",
        )
    if shape[0] != len(batch):
        raise ModelError(
            f"the first axis of layer {layer!r} is not the batch",
            got=f"{shape} for {len(batch)} images",
            expected=expected,
            fix="name another layer, or wrap the model so that its batch comes first",
        )
    if not output.is_floating_point():
        raise ModelError(
            f"the output of layer {layer!r} is not floating point",
            got=output.dtype,
            expected="activations",
        )
    if min(shape) == 0:
        raise ModelError(f"the output of layer {layer!r} is empty", got=shape, expected=expected)
    if output.dim() == 2:
        return ActivationShape("flat", shape[1], (1, 1))
    if output.dim() == 3:
        return ActivationShape("tokens", shape[2], (shape[1], 1))
    square = batch.dim() == 4 and batch.shape[2] == batch.shape[3]
    if square and shape[1] == shape[2] != shape[3]:
        return ActivationShape("map", shape[3], (shape[1], shape[2]))
    return ActivationShape("map", shape[1], (shape[2], shape[3]))


def as_maps(output: Tensor, shape: ActivationShape) -> Tensor:
    """View a layer's output as maps, whatever its kind.

    Parameters
    ----------
    output : Tensor
        A layer's output for any number of images.
    shape : ActivationShape
        Its layout, from one example.

    Returns
    -------
    Tensor
        (batch, channels, H, W), sharing memory: tokens become (batch, channels, tokens, 1), flat
        outputs (batch, channels, 1, 1), channels-last maps are transposed.

    Raises
    ------
    ModelError
        If the output does not have this layout.
    """
    height, width = shape.grid
    rest = tuple(output.shape[1:])
    if shape.kind == "map" and rest == (shape.channels, height, width):
        return output
    if shape.kind == "map" and rest == (height, width, shape.channels):
        return output.permute(0, 3, 1, 2)
    if shape.kind == "tokens" and rest == (height, shape.channels):
        return output.transpose(1, 2).unsqueeze(-1)
    if shape.kind == "flat" and rest == (shape.channels,):
        return output[:, :, None, None]
    raise ModelError(
        "a layer changed its output's layout between images",
        got=tuple(output.shape),
        expected=f"{shape.kind} of {shape.channels} channels, grid {shape.grid}",
        fix="use images of one size",
    )
