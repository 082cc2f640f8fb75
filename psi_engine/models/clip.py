"""open_clip models: both towers as an encoder's, the visual tower as a model under study."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple, get_args

from torch import nn

from psi_engine.data.preprocess import Interpolation, Preprocess
from psi_engine.errors import ModelError
from psi_engine.models.clip_weights import (
    check_architecture,
    is_torchscript,
    locate,
    obtain,
    read_torchscript,
)
from psi_engine.models.zoo import Built

_PREPROCESS = ("mean", "std", "interpolation", "resize_mode")


class Clip(NamedTuple):
    """Both towers of an open_clip model in fp32 on the CPU, with what their images go through.

    dim : size of the shared space. quick_gelu : the activation, which no weight tells.
    """

    module: Any
    preprocess: Preprocess
    dim: int
    quick_gelu: bool


def build_clip(architecture: str, weights: str | None = None) -> Clip:
    """Build an open_clip model with its weights.

    Parameters
    ----------
    architecture : str
        A name of ``open_clip.list_models()``.
    weights : str, optional
        A tag of open_clip's, downloaded unless a cache holds it; a file (a state dict as .pt or
        .safetensors, or OpenAI's own TorchScript file); ``TAG=FILE``; or ``none``, random. By
        default ``openai``, or the only tag there is.

    Raises
    ------
    ModelError
        When the architecture, tag or file does not exist, when the file holds something else,
        or when there is no network for a tag that needs it.
    """
    import open_clip

    file, settings = None, {}
    if weights == "none":
        check_architecture(architecture)
    else:
        located = obtain(locate(architecture, weights))
        file, settings = located.file, located.settings
        assert file is not None
    config = open_clip.get_model_config(architecture)
    quick_gelu = bool(settings.get("quick_gelu") or config.get("quick_gelu"))
    overlay = {key: settings[key] for key in _PREPROCESS if key in settings}
    torchscript = file is not None and is_torchscript(file)
    build = _from_torchscript if torchscript else _from_state_dict
    try:
        module = build(architecture, file, quick_gelu, overlay)
    except Exception as error:  # torch, pickle, safetensors and zipfile each raise their own
        raise ModelError(
            f"{file} does not hold the weights of open_clip's {architecture}"
            if file is not None
            else f"open_clip cannot build {architecture}",
            got=" ".join(str(error).split())[:300] or type(error).__name__,
            expected="a state dict of that architecture, .pt or .safetensors" if file else None,
            fix="name the architecture the file was made for: open_clip:NAME" if file else None,
        ) from error
    preprocess = _preprocess(architecture, open_clip.get_model_preprocess_cfg(module))
    return Clip(module, preprocess, int(config["embed_dim"]), quick_gelu)


def build_clip_tower(architecture: str, weights: str | None = None) -> Built:
    """Build the visual tower alone; parameters and errors are :func:`build_clip`'s.

    Its layers have the names the tower gives them: ``transformer.resblocks.5`` of a ViT,
    ``layer4`` of a ResNet.
    """
    clip = build_clip(architecture, weights)
    activation = "QuickGELU" if clip.quick_gelu else ""
    return Built(clip.module.visual, clip.preprocess, None, facts=activation)


def _from_state_dict(
    architecture: str, file: Path | None, quick_gelu: bool, preprocess: dict[str, Any]
) -> nn.Module:
    import open_clip

    module: nn.Module = open_clip.create_model(
        architecture,
        None if file is None else str(file),
        force_quick_gelu=quick_gelu,
        force_preprocess_cfg=preprocess,
        pretrained_text=False,
    )
    return module


def _from_torchscript(
    architecture: str, file: Path | None, quick_gelu: bool, preprocess: dict[str, Any]
) -> nn.Module:
    import open_clip

    assert file is not None
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
        raise ModelError(
            f"open_clip:{architecture} wants images that psi-engine does not make",
            got=f"size {size}, interpolation {config['interpolation']}",
            expected="square images, bilinear or bicubic",
            fix="name another open_clip model",
        )
    side = int(sides.pop())
    return Preprocess(
        image_size=side,
        resize=side,
        interpolation=config["interpolation"],
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
    )
