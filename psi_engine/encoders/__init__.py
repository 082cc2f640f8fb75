"""Image and text encoders behind one protocol, one file per family."""

from psi_engine.encoders.loading import check_encoder, load_encoder
from psi_engine.encoders.protocol import Encoder, check_protocol

__all__ = [
    "Encoder",
    "check_encoder",
    "check_protocol",
    "load_encoder",
]
