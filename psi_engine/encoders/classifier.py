"""Encoders made of classifiers: features before the logits, with or without the logits' rows."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from psi_engine.encoders.forward import ModuleEncoder
from psi_engine.encoders.protocol import Text
from psi_engine.errors import EncoderError
from psi_engine.models import LoadedModel, load_model
from psi_engine.names import clean_class_names, read_names


class ClassifierEncoder(ModuleEncoder):
    """Penultimate features; the unit-normalised rows of the last linear layer are the concepts.

    A row is the direction in which its class's logit grows, so its cosine with a feature says
    how much of the class the image shows. The bias is left out: it says how often a class comes.
    """

    text: Text = "fixed"

    def __init__(
        self, model: LoadedModel, module: nn.Module, rows: Tensor, concepts: tuple[str, ...]
    ) -> None:
        name = f"classifier:{model.name}"
        super().__init__(name, module, model.preprocess, rows.shape[1], _fingerprint(name, model))
        self.concepts = concepts
        self.concept_embeddings = functional.normalize(rows.float(), dim=1)


def load_classifier(
    name: str, weights: str | None = None, names_file: str | Path | None = None
) -> ClassifierEncoder:
    """Load a classifier as an encoder with fixed concepts, on the CPU.

    Parameters
    ----------
    name : str
        A torchvision classifier (``resnet18``), ``timm:NAME``, or ``package.module:factory`` of
        a model.
    weights : str, optional
        ``default`` (also by default), ``none`` or a file.
    names_file : path, optional
        Names of the classes in the order of the rows, one per line. By default the model's own
        categories, or ``class 0``, ``class 1`` … where it has none.

    Raises
    ------
    ModelError
        As :func:`psi_engine.models.load_model`.
    EncoderError
        When the model does not end in a linear layer, or the file has another number of names.
    """
    model = load_model(name, weights or "default")
    path, head = _last_linear(model)
    count = head.out_features
    if names_file is not None:
        names = read_names(names_file)
        if len(names) != count:
            raise EncoderError(
                f"{names_file} does not name the classes of classifier:{name}",
                got=f"{len(names)} names",
                expected=f"{count}, one per line in the order of the classes",
                fix="mend the file, or leave --concepts out to use the model's own categories",
            )
    else:
        names = model.categories or tuple(f"class {index}" for index in range(count))
    # Without its head the module itself gives the features.
    parent, _, child = path.rpartition(".")
    setattr(model.module.get_submodule(parent), child, nn.Identity())
    rows = head.weight.detach()
    return ClassifierEncoder(model, model.module, rows, clean_class_names(names))


class _PreLogits(nn.Module):
    """The part of a timm model before its logits: pooled and normalised as its head does it."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixels: Tensor) -> Tensor:
        maps = self.model.forward_features(pixels)
        features: Tensor = self.model.forward_head(maps, pre_logits=True)
        return features


def load_timm(name: str, weights: str | None = None) -> ModuleEncoder:
    """Load a timm model as an encoder of images only, on the CPU.

    Parameters
    ----------
    name : str
        A name of timm, with or without a tag.
    weights : str, optional
        ``default`` (also by default), ``none`` or a file.

    Raises
    ------
    ModelError
        As :func:`psi_engine.models.load_model`.
    EncoderError
        When the model has no features before its logits.
    """
    model = load_model(f"timm:{name}", weights or "default")
    module = _PreLogits(model.module).eval()
    side = model.preprocess.image_size
    try:
        with torch.inference_mode():
            features = module(torch.zeros(1, 3, side, side))
    except (AttributeError, TypeError) as error:
        raise _no_features(f"timm:{name}", str(error)) from error
    if features.dim() != 2:
        raise _no_features(f"timm:{name}", f"an output of shape {tuple(features.shape)}")
    fingerprint = _fingerprint(f"timm:{name}", model)
    return ModuleEncoder(f"timm:{name}", module, model.preprocess, features.shape[1], fingerprint)


def _last_linear(model: LoadedModel) -> tuple[str, nn.Linear]:
    """The linear layer whose output is the model's, found by running the model once."""
    linears = {name: m for name, m in model.module.named_modules() if isinstance(m, nn.Linear)}
    outputs: dict[str, Tensor] = {}
    handles = [
        linear.register_forward_hook(
            lambda _module, _input, output, name=name: outputs.__setitem__(name, output)
        )
        for name, linear in linears.items()
    ]
    side = model.preprocess.image_size
    try:
        with torch.inference_mode():
            logits = model.module(torch.zeros(1, 3, side, side))
    finally:
        for handle in handles:
            handle.remove()
    for name, output in outputs.items():
        if isinstance(logits, Tensor) and logits.dim() == 2 and output is logits:
            return name, linears[name]
    raise EncoderError(
        f"{model.name} does not end in a linear layer",
        got=f"{type(model.module).__name__} with {len(linears)} linear layers, none the last",
        expected="a classifier whose logits come from one nn.Linear, such as resnet18",
        fix="use another classifier, or timm:NAME for its features alone",
    )


def _no_features(name: str, reason: str) -> EncoderError:
    return EncoderError(
        f"{name} gives no feature vector before its logits",
        got=reason,
        expected="pooled features (n, dim) from forward_head(…, pre_logits=True)",
        fix="use another model, or wrap it in a package.module:factory",
    )


def _fingerprint(name: str, model: LoadedModel) -> str:
    facts = repr((name, model.fingerprint, model.preprocess))
    return hashlib.sha256(facts.encode()).hexdigest()
