"""Latents of a layer as channels: a sparse autoencoder (or any map of activations) as a layer.

``attach_latents(module, "blocks.5", sae, …)`` gives the model a submodule ``latents.blocks.5``
that runs whenever ``blocks.5`` does and changes nothing in what the model computes. From then on
it is a layer like any other: mined, scored, swapped, addressed by name or glob.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from psi_engine.errors import ModelError
from psi_engine.hooks import as_maps
from psi_engine.models.addresses import activation_shapes
from psi_engine.ops.random import string_key, uniform
from psi_engine.types import ActivationShape

LATENTS = "latents"
"""Where the layers of latents hang in a model."""

_SAE = "sae"
_PROBE_ROWS = 16


class _Passage(nn.Module):
    """Holds layers of latents. Hands its input on, for models that run all their children."""

    def forward(self, *inputs: Any) -> Any:
        return inputs[0]


class _Function(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self._function = function

    def forward(self, rows: Tensor) -> Tensor:
        return self._function(rows)


class LatentLayer(_Passage):
    """Latents of one layer, in that layer's own layout: maps stay maps, tokens tokens.

    layer : the layer they are made from. shape : its layout.
    """

    def __init__(self, layer: str, shape: ActivationShape, sae: nn.Module) -> None:
        super().__init__()
        self.layer, self.shape = layer, shape
        self.add_module(_SAE, sae)

    def forward(self, *inputs: Any) -> Any:
        """(B, C, H, W), (B, H, W, C), (B, T, C) or (B, C) → the same with latents for C."""
        output: Tensor = inputs[0]
        maps = as_maps(output, self.shape).permute(0, 2, 3, 1)
        latents = _encode(self.get_submodule(_SAE), maps.reshape(-1, self.shape.channels))
        if self.shape.kind == "flat":
            return latents
        if self.shape.kind == "tokens":
            return latents.reshape(*maps.shape[:2], -1)
        return latents.reshape(*maps.shape[:3], -1).permute(0, 3, 1, 2)


class _Tap:
    """The hook that feeds a layer's output to its latents; an object, so that copies follow."""

    def __init__(self, latents: LatentLayer) -> None:
        self._latents = latents

    def __call__(self, module: nn.Module, inputs: Any, output: Any) -> None:
        self._latents(output)


def attach_latents(
    module: nn.Module,
    layer: str,
    sae: nn.Module | Callable[[Tensor], Tensor],
    example_batch: Tensor,
) -> tuple[str, str]:
    """Give a model a layer of latents of one of its layers.

    Parameters
    ----------
    module : nn.Module
        Changed in place: the layer gets a forward hook, the model a submodule ``latents``.
    layer : str
        Name of the layer.
    sae : nn.Module or callable
        Its method ``encode``, else the object itself, maps float32 (sites, channels) to
        (sites, latents), each row by itself. A module is set to evaluation mode and float32, and
        moves with the model; any other callable must follow the device of its argument.
    example_batch : Tensor
        float (batch, 3, S, S) at the real size; the values do not matter.

    Returns
    -------
    tuple of str
        The name of the new layer, ``latents.`` and the layer's; and a short answer to a fixed
        question (which latents respond to 16 random rows, and how much), for fingerprints:
        weights do not tell the number of active latents, and a plain callable has none.

    Raises
    ------
    ModelError
        The layer does not exist or has latents already, or what the callable returns is not
        (sites, latents). The model is then as it was.
    """
    name = f"{LATENTS}.{layer}"
    there = module._modules.get(LATENTS)
    if there is not None and not isinstance(there, _Passage):
        raise ModelError(
            f"the model has a submodule of its own named {LATENTS!r}",
            fix="rename it in a package.module:factory",
        )
    taken = dict(module.named_modules()).get(name)
    if taken is not None and type(taken) is not _Passage:
        raise ModelError(f"{layer!r} has latents already", expected="one set of latents a layer")
    shape = activation_shapes(module, [layer], example_batch)[layer]
    wrapped = sae if isinstance(sae, nn.Module) else _Function(_encoder(sae))
    wrapped = wrapped.eval().requires_grad_(False).float()
    answer = _probe(layer, wrapped, shape.channels, example_batch.device)
    latents = LatentLayer(layer, shape, wrapped)
    _hang(module, name.split("."), latents)
    module.get_submodule(layer).register_forward_hook(_Tap(latents))
    return name, answer


def latent_source(module: nn.Module, layer: str) -> tuple[str, ActivationShape] | None:
    """The layer that latents are made from and its layout; None for any other layer."""
    found = module.get_submodule(layer)
    return (found.layer, found.shape) if isinstance(found, LatentLayer) else None


def _hang(module: nn.Module, path: list[str], latents: LatentLayer) -> None:
    """Put latents in their place; containers on the way are made, and kept where they are."""
    for depth, part in enumerate(path):
        there = module._modules.get(part)
        if depth == len(path) - 1:
            for name, child in [] if there is None else there.named_children():
                latents.add_module(name, child)  # latents of a layer inside this one
            module.add_module(part, latents.eval())
        elif there is None:
            module.add_module(part, _Passage().eval())
        module = module.get_submodule(part)


def _encoder(sae: Any) -> Callable[[Tensor], Tensor]:
    encode = getattr(sae, "encode", sae)
    if not callable(encode):
        raise ModelError(
            "latents cannot be made by this",
            got=type(sae).__name__,
            expected="an nn.Module, or a callable of activations (sites, channels)",
        )
    result: Callable[[Tensor], Tensor] = encode
    return result


def _encode(sae: nn.Module, rows: Tensor) -> Tensor:
    return _encoder(sae)(rows)


def _probe(layer: str, sae: nn.Module, channels: int, device: torch.device) -> str:
    """Check what a callable returns, and say in short what responds to fixed rows."""
    where = torch.arange(_PROBE_ROWS * channels).view(_PROBE_ROWS, channels)
    rows = ((uniform(string_key("latents"), where) - 0.5) * 4).to(torch.float32).to(device)
    try:
        with torch.no_grad():
            found = _encode(sae.to(device), rows)
    except Exception as error:
        # Whatever a callable raises on activations it was not made for.
        raise ModelError(
            f"the latents of {layer!r} cannot be made",
            got=f"{type(error).__name__}: {error}",
            expected=f"a map of (sites, {channels}) activations to (sites, latents)",
        ) from error
    good = isinstance(found, Tensor) and found.dim() == 2 and found.is_floating_point()
    if not good or len(found) != _PROBE_ROWS or not found.shape[1]:
        raise ModelError(
            f"what makes the latents of {layer!r} returns something else",
            got=f"{found.dtype} {tuple(found.shape)}"
            if isinstance(found, Tensor)
            else type(found).__name__,
            expected=f"floating point ({_PROBE_ROWS}, latents) for {_PROBE_ROWS} sites",
        )
    active, best = (found != 0).sum(1).tolist(), found.argmax(1).tolist()
    # Three digits of means without cancellation: the last bits of a sum differ between numbers of
    # threads. Weights of their own tell latents that changed places, and gains from losses.
    values = found.to("cpu", torch.float64)
    weights = 0.5 + uniform(string_key("latent weights"), torch.arange(2 * values.shape[1]))
    both = torch.cat([values.clamp(min=0), -values.clamp(max=0)], 1)
    sums = [f"{x:.2e}" for x in (both * weights).mean(1).tolist()]
    return f"{layer} {found.shape[1]} {active} {best} {sums}"
