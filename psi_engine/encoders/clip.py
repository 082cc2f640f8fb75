"""The open_clip encoders: an image and a text tower of one space."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from psi_engine.encoders.forward import ModuleEncoder
from psi_engine.encoders.protocol import Text
from psi_engine.models.clip import Clip, build_clip
from psi_engine.models.weights import state_fingerprint


class ClipEncoder(ModuleEncoder):
    """Both towers of an open_clip model, in fp32."""

    text: Text = "encoder"

    def __init__(
        self, architecture: str, clip: Clip, tokenizer: Callable[[list[str]], Tensor]
    ) -> None:
        # The activation has no weights, so the fingerprint has to name it.
        facts = repr((architecture, clip.quick_gelu, clip.preprocess))
        fingerprint = state_fingerprint(clip.module, facts)
        name = f"open_clip:{architecture}"
        super().__init__(name, clip.module, clip.preprocess, clip.dim, fingerprint)
        self.quick_gelu = clip.quick_gelu
        self._towers = clip.module
        self._tokenizer = tokenizer

    def encode_texts(self, texts: list[str]) -> Tensor:
        """Unit embeddings, float32 (texts, dim), on the encoder's device.

        A text longer than the model's context is cut, as in its training.
        """
        tokens = self._tokenizer(list(texts)) if texts else torch.zeros(0, 1, dtype=torch.int64)
        return self._unit_rows(self._towers.encode_text, tokens)

    def _tower(self, pixels: Tensor) -> Tensor:
        features: Tensor = self._towers.encode_image(pixels)
        return features


def load_clip(architecture: str, weights: str | None = None) -> ClipEncoder:
    """Load an open_clip model; parameters and errors are those of ``models.clip.build_clip``."""
    import open_clip

    clip = build_clip(architecture, weights)
    return ClipEncoder(architecture, clip, open_clip.get_tokenizer(architecture))
