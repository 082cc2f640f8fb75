"""From what the user names to an encoder that keeps the protocol."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from psi_engine.encoders.classifier import load_classifier, load_timm
from psi_engine.encoders.clip import load_clip
from psi_engine.encoders.protocol import Encoder, check_protocol
from psi_engine.errors import EncoderError, ModelError
from psi_engine.factories import import_factory
from psi_engine.models.clip_weights import locate
from psi_engine.models.zoo import require_weights

FAMILIES = ("open_clip", "timm", "classifier")

_EXPECTED = "open_clip:NAME, timm:NAME, classifier:NAME or package.module:factory"


def load_encoder(
    spec: str,
    weights: str | None = None,
    device: torch.device | str = "cpu",
    concepts_file: str | Path | None = None,
) -> Encoder:
    """Load an encoder.

    Parameters
    ----------
    spec : str
        ``open_clip:NAME`` (images and any text), ``timm:NAME`` (images only),
        ``classifier:NAME`` (a torchvision classifier, ``classifier:timm:NAME`` or
        ``classifier:package.module:factory``; its classes are the only texts), or
        ``package.module:factory``, where ``factory()``, or ``factory(weights)`` when weights
        are given, returns an :class:`Encoder`.
    weights : str, optional
        A tag of the family, or a file; by default the family's own weights, downloaded once.
    device : torch.device or str
    concepts_file : path, optional
        For ``classifier``: names of its classes, one per line.

    Raises
    ------
    EncoderError
        When the spec, the weights or what a factory returns is wrong, or when weights would have
        to be downloaded without a network; within seconds.
    """
    family, name = _split(spec)
    with _as_encoder_error(spec):
        if family == "open_clip":
            encoder: Encoder = load_clip(name, weights)
        elif family == "timm":
            encoder = load_timm(name, weights)
        elif family == "classifier":
            encoder = load_classifier(name, weights, concepts_file)
        else:
            encoder = _from_factory(spec, weights)
    return encoder.to(device)


def check_encoder(spec: str, weights: str | None = None) -> None:
    """Check what can be checked of an encoder without loading or downloading it.

    Raises
    ------
    EncoderError
        When the spec or the weights do not exist, or when they would have to be downloaded
        without a network.
    """
    family, name = _split(spec)
    with _as_encoder_error(spec):
        if family == "open_clip":
            locate(name, weights)
        elif family is not None:
            _check_model(f"timm:{name}" if family == "timm" else name, weights or "default")
        else:
            import_factory(spec, EncoderError, _EXPECTED)


def _split(spec: str) -> tuple[str | None, str]:
    """The family and the rest; no family for a factory."""
    head, _, rest = spec.partition(":")
    if not rest or not head:
        hint = " or ".join(f"{family}:{spec.strip(':')}" for family in FAMILIES)
        raise EncoderError(f"unknown encoder {spec!r}", expected=_EXPECTED, fix=f"say {hint}")
    return (head, rest) if head in FAMILIES else (None, spec)


def _from_factory(spec: str, weights: str | None) -> Encoder:
    factory: Callable[..., Any] = import_factory(spec, EncoderError, _EXPECTED)
    arguments = () if weights is None else (weights,)
    try:
        inspect.signature(factory).bind(*arguments)
    except TypeError as error:
        raise EncoderError(
            f"{spec} cannot be called with {len(arguments)} arguments",
            got=str(error),
            expected="factory(), and factory(weights) where --encoder-weights is given",
            fix="mend the factory, or leave --encoder-weights out" if weights else None,
        ) from error
    return check_protocol(factory(*arguments), spec)


def _check_model(name: str, weights: str) -> None:
    if weights == "none":
        return
    if weights != "default":
        if not Path(weights).is_file():
            raise EncoderError(
                f"no weights file {weights}",
                expected="default, none, or a .pth or .safetensors file",
                fix="check the path given to --encoder-weights",
            )
    elif ":" not in name or name.startswith("timm:"):
        require_weights(name)


@contextmanager
def _as_encoder_error(spec: str) -> Iterator[None]:
    """What goes wrong with an encoder's model is said in the encoder's options."""
    try:
        yield
    except ModelError as error:
        message = str(error).replace("--weights", "--encoder-weights")
        raise EncoderError(f"encoder {spec}: {message}") from error
