"""Models, their weights, and the addresses of their layers and channels."""

from psi_engine.models.addresses import activation_shapes, parse_channels, resolve_layers
from psi_engine.models.clip_weights import cached_clip_weights
from psi_engine.models.latents import attach_latents, latent_source
from psi_engine.models.layers import LayerChoice, choose_layers
from psi_engine.models.loading import (
    LoadedModel,
    check_model,
    load_model,
    may_download,
)
from psi_engine.models.weights import load_weights, read_state_dict, state_fingerprint
from psi_engine.models.zoo import cached_weights, require_weights

__all__ = [
    "LayerChoice",
    "LoadedModel",
    "activation_shapes",
    "attach_latents",
    "cached_clip_weights",
    "cached_weights",
    "check_model",
    "choose_layers",
    "latent_source",
    "load_model",
    "load_weights",
    "may_download",
    "parse_channels",
    "read_state_dict",
    "require_weights",
    "resolve_layers",
    "state_fingerprint",
]
