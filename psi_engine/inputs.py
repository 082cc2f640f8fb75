"""A run's inputs, found and checked before any work and before any download.

The order is options, device, model, weights, layers, channels, data, encoder: the mistakes that
cost nothing to see come first, whatever needs the network comes last.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from psi_engine.config import RunConfig
from psi_engine.data import ImageSource, needs_download, open_source
from psi_engine.encoders import Encoder, check_encoder, load_encoder
from psi_engine.errors import DataError
from psi_engine.models import (
    LoadedModel,
    activation_shapes,
    load_model,
    parse_channels,
    resolve_layers,
)
from psi_engine.ops.backend import resolve_backend, resolve_device
from psi_engine.types import ActivationShape, Prompts
from psi_engine.vocabulary import build_vocabulary, unrelated_bank


@dataclass(frozen=True)
class Inputs:
    """A run's inputs, all found and checked."""

    device: torch.device
    backend: str
    model: LoadedModel
    layers: list[str]
    shapes: Mapping[str, ActivationShape]
    channels: Mapping[str, Tensor]
    source: ImageSource
    encoder: Encoder
    prompts: Prompts | None
    """What an encoder of free texts names clusters with; None for the other encoders."""

    @property
    def identity(self) -> dict[str, str]:
        """What makes two runs the same run."""
        return {
            "model": self.model.name,
            "weights": self.model.fingerprint,
            "data": self.source.fingerprint,
        }


@dataclass(frozen=True)
class Texts:
    """The concepts the clusters are named with, embedded; all None without text."""

    embeddings: Tensor | None  # float32 (prompts, dim)
    concept_ids: Tensor | None  # int64 (prompts,)
    concepts: tuple[str, ...] | None
    unrelated: Tensor | None
    unrelated_ids: Tensor | None
    source: str


def check(config: RunConfig) -> Inputs:
    """Find and check everything a run needs; local checks first, downloads last."""
    device = resolve_device(config.device)
    backend = resolve_backend(config.backend, device)
    downloads_weights = config.weights == "default"
    model = load_model(
        config.model, "none" if downloads_weights else config.weights, config.image_size
    )
    layers = resolve_layers(model.module, config.layers)
    side = model.preprocess.image_size
    shapes = activation_shapes(model.module, layers, torch.zeros(1, 3, side, side))
    channels = parse_channels(config.channels, shapes)
    source = None if needs_download(config.data) else _open_data(config)
    check_encoder(config.encoder, config.encoder_weights)
    if downloads_weights:
        model = load_model(config.model, "default", config.image_size)
    source = source or _open_data(config)
    encoder = load_encoder(config.encoder, config.encoder_weights, device, config.concepts)
    prompts = None
    if encoder.text == "encoder":
        prompts = build_vocabulary(source.class_names, config.concepts)
    return Inputs(device, backend, model, layers, shapes, channels, source, encoder, prompts)


def _open_data(config: RunConfig) -> ImageSource:
    source = open_source(config.data, config.max_images)
    if len(source) < 4:
        raise DataError(
            "too few images",
            got=len(source),
            expected=f"at least 4, better {10 * config.mine.top_k} or more",
            fix="give a larger --data",
        )
    return source


def embed_texts(config: RunConfig, inputs: Inputs) -> Texts:
    """Embed the vocabulary, or take the encoder's own concepts, or none."""
    encoder = inputs.encoder
    prompts = inputs.prompts
    if encoder.text == "fixed":
        return Texts(
            encoder.concept_embeddings, None, encoder.concepts, None, None, f"fixed: {encoder.name}"
        )
    if prompts is None:
        return Texts(None, None, None, None, None, "none: the encoder has no text side")
    unrelated = unrelated_ids = None
    if config.score.d_null == "unrelated-text":
        bank = unrelated_bank(exclude=prompts.concepts)
        unrelated, unrelated_ids = encoder.encode_texts(list(bank.texts)), bank.concept_ids
    return Texts(
        encoder.encode_texts(list(prompts.texts)),
        prompts.concept_ids,
        prompts.concepts,
        unrelated,
        unrelated_ids,
        prompts.source,
    )
