"""Fewer images of a source, spread over all of it."""

from __future__ import annotations

from PIL import Image
from torch import Tensor

from psi_engine.data.source import ImageSource, fingerprint_of


class SpacedSource(ImageSource):
    """``count`` images of another source at even distances, in its order.

    Sources are often sorted by class; the first images would be those of the first classes.

    Parameters
    ----------
    source : ImageSource
    count : int
        At most the length of the source.
    """

    def __init__(self, source: ImageSource, count: int) -> None:
        self._source = source
        self._places = [place * len(source) // count for place in range(count)]
        self.name = source.name
        self.keys = [source.keys[place] for place in self._places]
        self.class_names = source.class_names
        self.fingerprint = fingerprint_of(["spaced", source.fingerprint, str(count)])

    @property
    def labels(self) -> Tensor | None:
        """int64 (images,), −1 where unknown; None without labels."""
        labels = self._source.labels
        return None if labels is None else labels[self._places]

    def item(self, index: int) -> Image.Image | Tensor:
        """The item of the source at this image's place."""
        if not 0 <= index < len(self):
            raise IndexError(f"image {index} of {len(self)}")
        return self._source.item(self._places[index])
