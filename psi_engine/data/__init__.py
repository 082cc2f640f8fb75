"""Image sources: anything with images becomes an indexed sequence of uint8 views."""

from psi_engine.data.download import cached_tiny_imagenet, require_network
from psi_engine.data.loading import Batch, Loader, batches
from psi_engine.data.opening import needs_download, open_source, require_download
from psi_engine.data.preprocess import Preprocess
from psi_engine.data.source import CorruptImage, ImageSource

__all__ = [
    "Batch",
    "CorruptImage",
    "ImageSource",
    "Loader",
    "Preprocess",
    "batches",
    "cached_tiny_imagenet",
    "needs_download",
    "open_source",
    "require_download",
    "require_network",
]
