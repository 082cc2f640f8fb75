"""Models, their weights, and the addresses of their layers and channels."""

from psi_engine.models.addresses import activation_shapes, parse_channels, resolve_layers
from psi_engine.models.clip_weights import cached_clip_weights
from psi_engine.models.loading import LoadedModel, import_factory, load_model
from psi_engine.models.weights import load_weights, read_state_dict, state_fingerprint
from psi_engine.models.zoo import cached_weights, close_names, require_weights

__all__ = [
    "LoadedModel",
    "activation_shapes",
    "cached_clip_weights",
    "cached_weights",
    "close_names",
    "import_factory",
    "load_model",
    "load_weights",
    "parse_channels",
    "read_state_dict",
    "require_weights",
    "resolve_layers",
    "state_fingerprint",
]
