"""Model and weights → a module in evaluation mode, its preprocess, its layers and channels."""

from __future__ import annotations

import fnmatch
import importlib
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from psi_engine.data import Preprocess
from psi_engine.errors import InputError, ModelError
from psi_engine.hooks import activation_shape, capture
from psi_engine.types import ActivationShape
from psi_engine.weights import load_weights, read_state_dict, state_fingerprint
from psi_engine.zoo import (
    Built,
    build_timm,
    build_torchvision,
    cached_weights,
    close_names,
)

__all__ = [
    "LoadedModel",
    "activation_shapes",
    "cached_weights",
    "close_names",
    "import_factory",
    "load_model",
    "load_weights",
    "parse_channels",
    "read_state_dict",
    "resolve_layers",
    "state_fingerprint",
]

RANDOM_SEED = 0
"""Seed of random weights, so that ``weights="none"`` is the same net every time."""

_GLOB = re.compile(r"[*?\[]")


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


def load_model(name: str, weights: str = "default", image_size: int | None = None) -> LoadedModel:
    """Build a model and load its weights.

    Parameters
    ----------
    name : str
        A torchvision classifier (``resnet50``), ``timm:NAME``, or ``package.module:factory``,
        where ``factory()`` gives an ``nn.Module`` or ``(nn.Module, Preprocess)``.
    weights : str
        ``default``: the library's pretrained weights, downloaded once; of a factory, what it
        returns. ``none``: random with a fixed seed. Else a file: .safetensors, or a state dict
        saved by torch, read without running code from it; half precision is widened.
    image_size : int, optional
        Side of the images the model sees: the shorter side is resized to it and the centre
        cropped. By default the model's own resize and crop.

    Returns
    -------
    LoadedModel

    Raises
    ------
    ModelError
        For an unknown model, a missing file, weights of another architecture, or weights that
        would have to be downloaded without a network.

    Notes
    -----
    With a file or with ``none`` the preprocess is the one of the default weights. Categories are
    left out with ``none``, whose outputs mean nothing.
    """
    file = None if weights in ("default", "none") else weights
    if file is not None and not os.path.isfile(file):
        raise ModelError(
            f"no weights file {file}",
            expected="default, none, or a .pth or .safetensors file",
            fix="check the path",
        )
    # Random weights draw from torch's global generator: seed it, and put it back.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(RANDOM_SEED)
        built = _build(name, pretrained=weights == "default", image_size=image_size)
    if file is not None:
        load_weights(built.module, read_state_dict(file), name, file)
    preprocess = built.preprocess
    if image_size is not None:
        preprocess = replace(preprocess, image_size=image_size, resize=image_size)
    return LoadedModel(
        name=name,
        module=built.module.eval().requires_grad_(False),
        preprocess=preprocess,
        categories=None if weights == "none" else built.categories,
        weights=weights,
        fingerprint=state_fingerprint(built.module, name),
    )


def _build(name: str, *, pretrained: bool, image_size: int | None) -> Built:
    kind, _, rest = name.partition(":")
    if kind == "timm" and rest:
        return build_timm(rest, pretrained=pretrained)
    if rest:
        return _from_factory(name, image_size)
    return build_torchvision(name, pretrained=pretrained)


def _from_factory(name: str, image_size: int | None) -> Built:
    made = import_factory(name, ModelError)()
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


def import_factory(spec: str, error: type[InputError]) -> Callable[[], Any]:
    """Import ``package.module:factory``; the working directory counts as importable.

    Parameters
    ----------
    spec : str
        Module, colon, name of something callable without arguments.
    error : type
        The kind of error to raise.
    """
    module_name, _, attribute = spec.partition(":")
    here = os.getcwd()
    added = here not in sys.path
    if added:
        # An installed command does not search the working directory, ``python -m`` does.
        sys.path.insert(0, here)
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as problem:
        if problem.name is None or not f"{module_name}.".startswith(f"{problem.name}."):
            raise error(f"{module_name} cannot be imported", got=str(problem)) from problem
        raise error(
            f"no module {problem.name!r} for {spec!r}",
            expected="a name of torchvision, timm:NAME, or package.module:factory",
            fix="install it, or run in the folder that holds it",
        ) from problem
    except Exception as problem:
        raise error(
            f"{module_name} fails when it is imported",
            got=f"{type(problem).__name__}: {problem}",
        ) from problem
    finally:
        if added and here in sys.path:
            sys.path.remove(here)
    factory = getattr(module, attribute, None)
    if not callable(factory):
        callables = [key for key, value in vars(module).items() if callable(value)]
        raise error(
            f"{module_name} has no factory {attribute!r}",
            expected=close_names(attribute, callables) or "the name of a function",
        )
    return factory


def resolve_layers(module: nn.Module, patterns: Sequence[str]) -> list[str]:
    """Names of the layers that names and globs stand for.

    Parameters
    ----------
    module : nn.Module
    patterns : sequence of str
        Module names, or globs over them (``layer4.*``; ``*`` also matches dots).

    Returns
    -------
    list of str
        Each once, in the model's order.

    Raises
    ------
    ModelError
        If a name does not exist (close ones are listed) or a glob matches nothing.
    """
    names = [name for name, _ in module.named_modules() if name]
    chosen: set[str] = set()
    for pattern in patterns:
        if pattern in names:
            chosen.add(pattern)
            continue
        glob = _GLOB.search(pattern) is not None
        matches = [n for n in names if glob and fnmatch.fnmatchcase(n, pattern)]
        if not matches:
            top = [name for name, _ in module.named_children()]
            close = close_names(pattern, names)
            raise ModelError(
                f"no layer matches {pattern!r}" if glob else f"unknown layer {pattern!r}",
                expected=close or "names such as " + ", ".join(top[:12]),
            )
        chosen.update(matches)
    if not chosen:
        raise ModelError("no layers named", expected="names of modules, such as layer4")
    return [name for name in names if name in chosen]


def activation_shapes(
    module: nn.Module, layers: Sequence[str], example_batch: Tensor
) -> dict[str, ActivationShape]:
    """Layout of each layer's output, from one forward pass.

    Parameters
    ----------
    module : nn.Module
    layers : sequence of str
    example_batch : Tensor
        float (batch, 3, S, S) at the real size; the values do not matter.

    Raises
    ------
    ModelError
        If the model fails on it, or a layer does not run or puts out something else than one
        tensor of rank 2 to 4 with the batch first.
    """
    anchor = next((t for t in (*module.parameters(), *module.buffers())), example_batch)
    batch = example_batch.to(anchor.device)
    try:
        with torch.no_grad(), capture(module, layers) as found:
            outputs = dict(found.run(batch))
    except InputError:
        raise
    except Exception as error:
        # Whatever a model raises on images it was not made for.
        raise ModelError(
            f"the model fails on images of shape {tuple(batch.shape[1:])}",
            got=f"{type(error).__name__}: {error}",
            fix="set the size it was made for with --image-size",
        ) from error
    return {layer: activation_shape(layer, outputs[layer], batch) for layer in layers}


def parse_channels(
    specs: Sequence[str], shapes: Mapping[str, ActivationShape]
) -> dict[str, Tensor]:
    """Which channels of which layers.

    Parameters
    ----------
    specs : sequence of str
        ``layer4:0-63``, ``layer4:3,17,40-42``, several joined by commas, ranges inclusive. Specs
        of one layer add up.
    shapes : Mapping of str to ActivationShape
        The layers of the run.

    Returns
    -------
    dict of str to Tensor
        Layer → int64 (n,), ascending; all channels of a layer that no spec names.

    Raises
    ------
    ModelError
        For a layer not in the run, a channel out of range, or a spec of another form.
    """
    chosen: dict[str, set[int]] = {}
    for spec in specs:
        layer: str | None = None
        for part in spec.split(","):
            name, colon, numbers = part.strip().rpartition(":")
            if colon:
                layer = name
                if layer not in shapes:
                    raise ModelError(
                        f"channels of a layer that is not in the run: {layer!r}",
                        expected="one of " + ", ".join(shapes),
                        fix="add it to --layers",
                    )
            match = re.fullmatch(r"(\d+)(?:-(\d+))?", numbers.strip())
            if layer is None or match is None:
                raise ModelError(
                    "bad channels", got=repr(spec), expected="such as layer4:0-63 or layer4:3,17"
                )
            first, last = int(match[1]), int(match[2] or match[1])
            count = shapes[layer].channels
            if last < first or last >= count:
                raise ModelError(
                    f"no such channels in {layer}",
                    got=numbers.strip(),
                    expected=f"0 to {count - 1}, ranges ascending",
                )
            chosen.setdefault(layer, set()).update(range(first, last + 1))
    return {
        layer: torch.tensor(sorted(chosen.get(layer, range(shape.channels))), dtype=torch.int64)
        for layer, shape in shapes.items()
    }
