"""Model and weights → a module in evaluation mode and its preprocess."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn

from psi_engine.data import Preprocess
from psi_engine.errors import ModelError
from psi_engine.factories import import_factory
from psi_engine.models.addresses import resolve_layers
from psi_engine.models.clip import build_clip_tower
from psi_engine.models.clip_weights import check_architecture, locate
from psi_engine.models.latents import attach_latents
from psi_engine.models.weights import load_weights, read_state_dict, state_fingerprint
from psi_engine.models.zoo import (
    NAMES,
    Built,
    build_timm,
    build_torchvision,
    check_timm_name,
    torchvision_weights,
)

_CLIP = "open_clip:"
_LATENTS = "LAYER=package.module:factory"

RANDOM_SEED = 0
"""Seed of random weights, so that ``weights="none"`` is the same net every time."""


@dataclass(frozen=True)
class LoadedModel:
    """A model ready to run.

    name : what the user asked for. module : in evaluation mode, parameters without gradients,
    on the CPU. preprocess : what its images go through. categories : names of its outputs, None
    where they are not known. weights : ``default``, ``none`` or the file. fingerprint : SHA-256
    of the architecture's name and every parameter and buffer.
    """

    name: str
    module: nn.Module
    preprocess: Preprocess
    categories: tuple[str, ...] | None
    weights: str
    fingerprint: str


def load_model(
    name: str,
    weights: str = "default",
    image_size: int | None = None,
    latents: Sequence[str] = (),
) -> LoadedModel:
    """Build a model and load its weights.

    Parameters
    ----------
    name : str
        A torchvision classifier (``resnet50``), ``timm:NAME``, ``open_clip:NAME`` (the visual
        tower), or ``package.module:factory``, where ``factory()`` gives an ``nn.Module`` or
        ``(nn.Module, Preprocess)``.
    weights : str
        ``default``: the library's pretrained weights, downloaded once; of a factory, what it
        returns. ``none``: random with a fixed seed. Else a file: .safetensors, or a state dict
        saved by torch, read without running code from it; half precision is widened. Of
        ``open_clip:NAME`` also a tag of open_clip's, or ``TAG=FILE``.
    image_size : int, optional
        Side of the images the model sees: the shorter side is resized to it and the centre
        cropped. By default the model's own resize and crop.
    latents : sequence of str
        ``LAYER=package.module:factory``, where ``factory()`` gives what
        :func:`~psi_engine.models.latents.attach_latents` takes, such as a sparse autoencoder
        with its weights. The model gets the layer ``latents.LAYER``.

    Returns
    -------
    LoadedModel

    Raises
    ------
    ModelError
        For an unknown model, a missing file, weights of another architecture, weights that
        would have to be downloaded without a network, or latents that cannot be made.

    Notes
    -----
    With a file or with ``none`` the preprocess is the one of the default weights. Categories are
    left out with ``none``, whose outputs mean nothing.
    """
    file = None if name.startswith(_CLIP) else _check_file(weights)
    # Random weights draw from torch's global generator: seed it, and put it back.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(RANDOM_SEED)
        built = _build(name, weights, image_size)
    if file is not None:
        load_weights(built.module, read_state_dict(file), name, file)
    preprocess = built.preprocess
    if image_size is not None:
        preprocess = replace(preprocess, image_size=image_size, resize=image_size)
    module = built.module.eval().requires_grad_(False)
    facts = name + built.facts
    for spec in latents:
        facts += _attach(module, spec, preprocess.image_size)
    return LoadedModel(
        name=name,
        module=module,
        preprocess=preprocess,
        categories=None if weights == "none" else built.categories,
        weights=weights,
        fingerprint=state_fingerprint(module, facts),
    )


def check_model(name: str, weights: str = "default") -> None:
    """Check what can be checked of a model without building or downloading it.

    Parameters
    ----------
    name, weights : str
        As for :func:`load_model`.

    Raises
    ------
    ModelError
        The model, its file or its factory does not exist; a tag of open_clip's that is neither
        in a cache nor within reach of the network.
    """
    kind, _, rest = name.partition(":")
    if name.startswith(_CLIP) and rest:
        if weights == "none":
            check_architecture(rest)
        else:
            locate(rest, None if weights == "default" else weights)
        return
    _check_file(weights)
    if kind == "timm" and rest:
        check_timm_name(rest)
    elif rest:
        import_factory(name, ModelError, NAMES)
    else:
        torchvision_weights(name)


def _check_file(weights: str) -> str | None:
    """The file that weights name, None for ``default`` and ``none``."""
    if weights in ("default", "none"):
        return None
    if not os.path.isfile(weights):
        raise ModelError(
            f"no weights file {weights}",
            expected="default, none, or a .pth or .safetensors file",
            fix="check the path",
        )
    return weights


def may_download(name: str, weights: str) -> bool:
    """Whether loading may have to download weights: ``default``, or a tag without a file."""
    if weights == "default" or not name.startswith(_CLIP):
        return weights == "default"
    return weights != "none" and locate(name.removeprefix(_CLIP), weights).file is None


def _attach(module: nn.Module, spec: str, side: int) -> str:
    layer, equals, factory = spec.partition("=")
    if not (layer and equals and ":" in factory):
        raise ModelError("bad latents", got=repr(spec), expected=_LATENTS)
    if resolve_layers(module, [layer]) != [layer]:
        raise ModelError("latents are made from one layer", got=layer, fix="name it in full")
    _, answer = attach_latents(
        module,
        layer,
        import_factory(factory, ModelError, _LATENTS)(),
        torch.zeros(1, 3, side, side),
    )
    return f"\0{factory} {answer}"


def _build(name: str, weights: str, image_size: int | None) -> Built:
    kind, _, rest = name.partition(":")
    if name.startswith(_CLIP) and rest:
        return build_clip_tower(rest, None if weights == "default" else weights)
    pretrained = weights == "default"
    if kind == "timm" and rest:
        return build_timm(rest, pretrained=pretrained)
    if rest:
        return _from_factory(name, image_size)
    return build_torchvision(name, pretrained=pretrained)


def _from_factory(name: str, image_size: int | None) -> Built:
    made = import_factory(name, ModelError, NAMES)()
    module, preprocess = made if isinstance(made, tuple) and len(made) == 2 else (made, None)
    if preprocess is None and isinstance(module, nn.Module):
        side = image_size or 224
        preprocess = Preprocess(image_size=side, resize=side)
    if not isinstance(module, nn.Module) or not isinstance(preprocess, Preprocess):
        got = made if not isinstance(made, tuple) else made[:3]
        raise ModelError(
            f"{name} did not return a model",
            got=", ".join(type(x).__name__ for x in (got if isinstance(got, tuple) else (got,))),
            expected="an nn.Module, or (nn.Module, psi_engine.data.Preprocess)",
        )
    return Built(module, preprocess, None)
