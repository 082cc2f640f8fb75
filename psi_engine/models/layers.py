"""Which layers of a model a run takes: the named ones, and what globs find that can be scored."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import Tensor, nn

from psi_engine.errors import ModelError
from psi_engine.hooks import activation_shape
from psi_engine.models.addresses import forward_once, resolve_layers
from psi_engine.models.latents import LATENTS, latent_source
from psi_engine.types import ActivationShape


class LayerChoice(NamedTuple):
    """The layers of a run, in the model's order.

    shapes : layout of each. depths : share of the model's weight layers (convolutions, linear
    maps, …) that have run when it puts out its last output, in [0, 1]; of latents, their
    layer's. left_out : layers that only a glob names and that are not taken, with the reason.
    """

    shapes: dict[str, ActivationShape]
    depths: dict[str, float]
    left_out: dict[str, str]


def choose_layers(module: nn.Module, patterns: Sequence[str], example_batch: Tensor) -> LayerChoice:
    """Resolve names and globs into layers that can be scored, by one forward pass.

    Parameters
    ----------
    module : nn.Module
        In evaluation mode.
    patterns : sequence of str
        Names, globs, or ``all``, as for :func:`resolve_layers`. A layer named in full is taken
        or refused; one that a glob finds is left out where it does not run, puts out something
        that is no activation, or puts out the very tensor that another layer of the choice does
        (a block and its last module): then the outermost, or the first to be defined, stays.
    example_batch : Tensor
        float (batch, 3, S, S) at the real size; the values do not matter.

    Raises
    ------
    ModelError
        A name does not exist or cannot be scored, nothing is left, or the model fails.
    """
    found = resolve_layers(module, patterns)
    named = [name for name in found if name in patterns]
    outputs, depths, batch = _watch(module, found, example_batch)
    shapes: dict[str, ActivationShape] = {}
    left_out: dict[str, str] = {}
    holders: dict[tuple[int, int], str] = {}
    for name in dict.fromkeys((*named, *found)):
        try:
            if name not in outputs:
                raise ModelError("the model does not run it", fix="leave it out")
            output, version = outputs[name]
            shape = _shape(name, output, batch)
        except ModelError as error:
            if name in named:
                raise ModelError(f"layer {name!r} cannot be scored", got=str(error)) from error
            left_out[name] = str(error)
            continue
        # An in-place operation leaves the object the same and its version greater.
        key = (id(output), version)
        if name not in named and key in holders:
            left_out[name] = f"puts out the same as {holders[key]}"
            continue
        holders.setdefault(key, name)
        shapes[name] = shape
    if not shapes:
        raise ModelError(
            "none of the layers can be scored",
            got="; ".join(f"{name}: {reason}" for name, reason in [*left_out.items()][:3]),
            expected="layers whose output is (batch, …, channels) activations",
        )
    return LayerChoice(
        {name: shapes[name] for name in found if name in shapes},
        {name: depths[name] for name in found if name in shapes},
        left_out,
    )


def _shape(name: str, output: Any, batch: Tensor) -> ActivationShape:
    if not isinstance(output, Tensor):
        raise ModelError(
            f"the output of layer {name!r} is not a tensor",
            got=type(output).__name__,
            expected="a tensor of rank 2, 3 or 4",
            fix="name a layer inside it",
        )
    return activation_shape(name, output, batch)


def _watch(
    module: nn.Module, layers: Sequence[str], example_batch: Tensor
) -> tuple[dict[str, tuple[Any, int]], dict[str, float], Tensor]:
    """Last output of each layer with its version at that time, depth of each, and the batch."""
    parts = dict(module.named_modules())
    sources = {name: latent_source(module, name) for name in layers}
    outputs: dict[str, tuple[Any, int]] = {}
    ran: dict[str, int] = {}
    calls = 0

    def weigh(*_: Any) -> None:
        nonlocal calls
        calls += 1

    def keep(name: str, output: Any) -> None:
        version = output._version if isinstance(output, Tensor) else 0
        outputs[name], ran[name] = (output, version), calls

    handles = []
    try:
        for name, part in parts.items():
            inside = name and name.split(".")[0] != LATENTS
            if inside and any(p.ndim > 1 for p in part.parameters(recurse=False)):
                handles.append(part.register_forward_hook(weigh))
        watched = {*layers, *(source[0] for source in sources.values() if source is not None)}
        for name in watched:

            def hook(_: nn.Module, __: Any, output: Any, name: str = name) -> None:
                keep(name, output)

            handles.append(parts[name].register_forward_hook(hook))
        batch = forward_once(module, example_batch)
    finally:
        for handle in handles:
            handle.remove()
    depths = {}
    for name in layers:
        source = sources[name]
        depths[name] = ran.get(name if source is None else source[0], 0) / max(1, calls)
    return outputs, depths, batch
