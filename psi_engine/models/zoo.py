"""Models by name from torchvision and timm, with their own preprocess and categories."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, NamedTuple, get_args
from urllib.parse import urlsplit

import torch
from torch import nn

from psi_engine.data.preprocess import Interpolation, Preprocess
from psi_engine.errors import ModelError
from psi_engine.factories import close_names
from psi_engine.network import unreachable_reason

_REFORMED = {"googlenet", "inception_v3"}
"""Nets whose pretrained form re-normalises its input; a local file needs the same form."""

NAMES = "a torchvision classifier, timm:NAME, open_clip:NAME, or package.module:factory"
"""What a model can be called."""


class Built(NamedTuple):
    """A module as its library makes it, with what its images go through.

    categories : names of its outputs, None where they are not known. facts : what changes its
    activations and is no weight, for the fingerprint.
    """

    module: nn.Module
    preprocess: Preprocess
    categories: tuple[str, ...] | None
    facts: str = ""


def build_torchvision(name: str, *, pretrained: bool) -> Built:
    """Build a torchvision classifier; its preprocess is that of the default weights.

    Raises
    ------
    ModelError
        For an unknown name, or weights that cannot be downloaded.
    """
    from torchvision import models

    default = torchvision_weights(name)
    if pretrained:
        require_weights(name)
        try:
            module = models.get_model(name, weights=default)
        except (OSError, RuntimeError) as error:
            raise _offline(name, str(error), default.url) from error
    else:
        form = {"init_weights": True, "transform_input": True} if name in _REFORMED else {}
        module = models.get_model(name, weights=None, **form)
    transforms = default.transforms()
    preprocess = Preprocess(
        image_size=int(transforms.crop_size[0]),
        resize=int(transforms.resize_size[0]),
        interpolation=transforms.interpolation.value,
        mean=tuple(transforms.mean),
        std=tuple(transforms.std),
    )
    return Built(module, preprocess, tuple(default.meta["categories"]))


def cached_weights(name: str) -> Path | None:
    """The file of a torchvision classifier's default weights, if it has been downloaded."""
    from torchvision import models

    file = _checkpoint(models.get_model_weights(name).DEFAULT.url)
    return file if file.is_file() else None


def require_weights(name: str) -> None:
    """Make sure that a model's default weights are on this machine or can be downloaded.

    Parameters
    ----------
    name : str
        A torchvision classifier or ``timm:NAME``.

    Raises
    ------
    ModelError
        For an unknown name, or weights that are not here and out of the network's reach.
    """
    kind, _, rest = name.partition(":")
    if kind == "timm" and rest:
        check_timm_name(rest)
        _timm_file(rest)
        return
    url = torchvision_weights(name).url
    reason = None if _checkpoint(url).is_file() else unreachable_reason(url)
    if reason is not None:
        raise _offline(name, reason, url)


def build_timm(name: str, *, pretrained: bool) -> Built:
    """Build a timm model; its preprocess is that of its pretrained weights.

    Raises
    ------
    ModelError
        For an unknown name or tag, a model without pretrained weights, weights that cannot be
        downloaded, or a preprocess that :class:`Preprocess` cannot express.
    """
    import timm
    from timm.data import resolve_data_config

    check_timm_name(name)
    overlay: dict[str, str] | None = None
    if pretrained:
        file = _timm_file(name)
        overlay = {"file": str(file)} if file is not None else None
    try:
        module = timm.create_model(name, pretrained=pretrained, pretrained_cfg_overlay=overlay)
    except RuntimeError as error:
        raise ModelError(f"timm cannot build {name!r}", got=str(error)) from error
    except OSError as error:  # what the hub's client raises, in all its kinds
        raise _offline(f"timm:{name}", str(error).split("\n")[0], "its weights") from error
    config = resolve_data_config({}, model=module)
    return Built(module, _timm_preprocess(name, config), _timm_categories(module))


def torchvision_weights(name: str) -> Any:
    """The default weights' entry of a torchvision classifier; an error for an unknown one."""
    from torchvision import models

    names = models.list_models(module=models)
    if name not in names:
        raise ModelError(
            f"unknown model {name!r}",
            expected=_in_timm(name) or close_names(name, names) or NAMES,
        )
    return models.get_model_weights(name).DEFAULT


def check_timm_name(name: str) -> None:
    """Refuse a name that timm does not know, with the close ones."""
    import timm

    if not timm.is_model(name):
        close = close_names(name, [*timm.list_models(), *timm.list_pretrained()])
        raise ModelError(f"unknown timm model {name!r}", expected=close or "a name of timm")


def _checkpoint(url: str) -> Path:
    return Path(torch.hub.get_dir()) / "checkpoints" / Path(urlsplit(url).path).name


def _offline(name: str, reason: str, what: str) -> ModelError:
    return ModelError(
        f"the weights of {name} cannot be downloaded",
        got=reason,
        fix=f"fetch {what} where there is a network and give the file with --weights FILE",
    )


def _in_timm(name: str) -> str | None:
    import timm

    return f"timm:{name}" if timm.is_model(name) else None


def _timm_file(name: str) -> Path | None:
    """The cached weights of a timm model; None if they are to be downloaded and can be."""
    from huggingface_hub import constants, try_to_load_from_cache
    from timm.models import get_pretrained_cfg

    try:
        config = get_pretrained_cfg(name)
    except RuntimeError as error:
        raise ModelError(f"unknown timm weights {name!r}", got=str(error)) from error
    if config is None or not config.has_weights:
        raise ModelError(
            f"timm has no pretrained weights for {name!r}",
            fix="use --weights none, or give a file with --weights FILE",
        )
    if not config.hf_hub_id:
        url = str(config.url)
        reason = None if _checkpoint(url).is_file() else unreachable_reason(url)
        if reason is not None:
            raise _offline(f"timm:{name}", reason, url)
        return None
    repository, _, revision = config.hf_hub_id.partition("@")
    files = [config.hf_hub_filename or "model.safetensors", "pytorch_model.bin"]
    for file in files:
        found = try_to_load_from_cache(repository, file, revision=revision or None)
        if isinstance(found, str):
            return Path(found)
    if constants.HF_HUB_OFFLINE:
        reason = "HF_HUB_OFFLINE is set"
    else:
        reason = unreachable_reason(constants.ENDPOINT)
    if reason is not None:
        raise _offline(f"timm:{name}", reason, f"{files[0]} of {repository}")
    return None


def _timm_preprocess(name: str, config: dict[str, Any]) -> Preprocess:
    channels, height, width = config["input_size"]
    if (
        channels != 3
        or height != width
        or config["crop_mode"] not in ("center", "squash")
        or config["interpolation"] not in get_args(Interpolation)
    ):
        raise ModelError(
            f"timm:{name} takes images in a way that is not supported",
            got=f"input {config['input_size']}, crop {config['crop_mode']}, "
            f"{config['interpolation']}",
            expected="square RGB, a centre crop or squash, bilinear or bicubic",
            fix="give it a Preprocess in a package.module:factory",
        )
    return Preprocess(
        image_size=height,
        resize=math.floor(height / config["crop_pct"]),
        interpolation=config["interpolation"],
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
        squash=config["crop_mode"] == "squash",
    )


def _timm_categories(module: nn.Module) -> tuple[str, ...] | None:
    from timm.data import ImageNetInfo, infer_imagenet_subset
    from torchvision.models import ResNet50_Weights

    subset = infer_imagenet_subset(module)
    if subset == "imagenet-1k":  # the same classes in the same order as torchvision's
        return tuple(ResNet50_Weights.DEFAULT.meta["categories"])
    if subset is None:
        return None
    return tuple(name.split(",")[0] for name in ImageNetInfo(subset).label_descriptions())
