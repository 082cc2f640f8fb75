"""The open_clip encoders: an image and a text tower of one space."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor, nn

from psi_engine.data import Preprocess
from psi_engine.encoders.clip_weights import is_torchscript, locate, obtain, read_torchscript
from psi_engine.encoders.forward import ModuleEncoder
from psi_engine.encoders.protocol import Interpolation, Text
from psi_engine.errors import EncoderError
from psi_engine.models.weights import state_fingerprint

_PREPROCESS = ("mean", "std", "interpolation", "resize_mode")


class ClipEncoder(ModuleEncoder):
    """Both towers of an open_clip model, in fp32."""

    text: Text = "encoder"

    def __init__(
        self,
        architecture: str,
        module: Any,
        tokenizer: Callable[[list[str]], Tensor],
        preprocess: Preprocess,
        dim: int,
        quick_gelu: bool,
    ) -> None:
        # The activation has no weights, so the fingerprint has to name it.
        facts = repr((architecture, quick_gelu, preprocess))
        name = f"open_clip:{architecture}"
        super().__init__(name, module, preprocess, dim, state_fingerprint(module, facts))
        self.quick_gelu = quick_gelu
        self._towers = module
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
    """Load an open_clip model in fp32 on the CPU.

    Parameters
    ----------
    architecture : str
        A name of ``open_clip.list_models()``.
    weights : str, optional
        A tag of open_clip's, downloaded unless a cache holds it; a file (a state dict as .pt or
        .safetensors, or OpenAI's own TorchScript file); or ``TAG=FILE``. By default ``openai``,
        or the only tag there is.

    Raises
    ------
    EncoderError
        When the architecture, tag or file does not exist, when the file holds something else,
        or when there is no network for a tag that needs it.
    """
    import open_clip

    located = obtain(locate(architecture, weights))
    assert located.file is not None
    config = open_clip.get_model_config(architecture)
    quick_gelu = bool(located.settings.get("quick_gelu") or config.get("quick_gelu"))
    overlay = {key: located.settings[key] for key in _PREPROCESS if key in located.settings}
    build = _from_torchscript if is_torchscript(located.file) else _from_state_dict
    try:
        module = build(architecture, located.file, quick_gelu, overlay)
        tokenizer = open_clip.get_tokenizer(architecture)
    except Exception as error:  # torch, pickle, safetensors and zipfile each raise their own
        raise EncoderError(
            f"{located.file} does not hold the weights of open_clip's {architecture}",
            got=" ".join(str(error).split())[:300] or type(error).__name__,
            expected="a state dict of that architecture, .pt or .safetensors",
            fix="name the architecture the file was made for: --encoder open_clip:NAME",
        ) from error
    preprocess = _preprocess(architecture, open_clip.get_model_preprocess_cfg(module))
    dim = int(config["embed_dim"])
    return ClipEncoder(architecture, module, tokenizer, preprocess, dim, quick_gelu)


def _from_state_dict(
    architecture: str, file: Path, quick_gelu: bool, preprocess: dict[str, Any]
) -> nn.Module:
    import open_clip

    module: nn.Module = open_clip.create_model(
        architecture,
        str(file),
        force_quick_gelu=quick_gelu,
        force_preprocess_cfg=preprocess,
        pretrained_text=False,
    )
    return module


def _from_torchscript(
    architecture: str, file: Path, quick_gelu: bool, preprocess: dict[str, Any]
) -> nn.Module:
    import open_clip

    config = {**open_clip.get_model_config(architecture), "quick_gelu": quick_gelu}
    module: nn.Module = open_clip.CLIP(**config)
    module.load_state_dict(read_torchscript(file))
    size = config["vision_cfg"]["image_size"]
    open_clip.set_model_preprocess_cfg(module, {**preprocess, "size": size})
    return module


def _preprocess(architecture: str, config: dict[str, Any]) -> Preprocess:
    size = config["size"]
    sides = {size} if isinstance(size, int) else set(size)
    if len(sides) != 1 or config["interpolation"] not in get_args(Interpolation):
        raise EncoderError(
            f"open_clip:{architecture} wants images that psi-engine does not make",
            got=f"size {size}, interpolation {config['interpolation']}",
            expected="square images, bilinear or bicubic",
            fix="use another encoder",
        )
    side = int(sides.pop())
    return Preprocess(
        image_size=side,
        resize=side,
        interpolation=config["interpolation"],
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
    )
