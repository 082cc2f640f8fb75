"""Where an open_clip model's weights are, and how they were trained.

open_clip reads the activation off the *name* of an architecture: ``ViT-B-32`` is built with GELU
even under the tag ``openai``, whose weights were trained with QuickGELU, x·σ(1.702 x); it only
warns, and the embeddings come out wrong. Here the tag decides, by open_clip's own table, together
with the normalisation. The tag of a local file is, in this order:

1. the one named, ``TAG=FILE``;
2. the one whose download has the file's name, or whose repository is a folder of its path;
3. the one all tags of the architecture agree with;
4. ``openai``, where every weight is a half-precision number, as in what comes from OpenAI's
   release and its conversions;
5. none: the architecture's name decides, and a warning says so.

``open_clip:NAME-quickgelu`` always has QuickGELU. OpenAI's own files are TorchScript, which can
hold code; they are read only when their SHA-256 is the one open_clip's table gives.
"""

from __future__ import annotations

import hashlib
import logging
import warnings
import zipfile
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from psi_engine.errors import ModelError
from psi_engine.factories import close_names
from psi_engine.models.weights import read_state_dict
from psi_engine.network import unreachable_reason

DEFAULT = ("ViT-B-32", "openai")
"""The architecture and tag of the default encoder; the tag is every architecture's default."""

_SUFFIXES = {".pt", ".pth", ".bin", ".safetensors"}
_TRAINING = ("quick_gelu", "mean", "std", "interpolation", "resize_mode")
_TORCHSCRIPT_EXTRAS = ("input_resolution", "context_length", "vocab_size")
_PROBE_SECONDS = 2.0
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Located:
    """The weights asked for.

    architecture : open_clip's name. file : None where it has to be downloaded. tag : None where
    it is not known. settings : open_clip's entry for the tag (``url``, ``hf_hub``,
    ``quick_gelu``, ``mean``, …), empty without one.
    """

    architecture: str
    file: Path | None
    tag: str | None
    settings: dict[str, Any] = field(default_factory=dict)


def locate(architecture: str, weights: str | None) -> Located:
    """Find weights on this machine, or make sure that they can be downloaded; within seconds.

    Parameters
    ----------
    architecture : str
    weights : str, optional
        A tag, a file, or ``TAG=FILE``; by default ``openai``, or the only tag there is.

    Raises
    ------
    ModelError
        When the architecture, tag or file does not exist, or when the weights are neither in a
        cache nor within reach of the network.
    """
    check_architecture(architecture)
    tags = _tags(architecture)
    if weights is not None:
        tag, _, file = weights.partition("=")
        if file and tag in tags and not Path(weights).exists():
            return Located(architecture, _existing(file), tag, tags[tag])
        if weights not in tags and _looks_like_file(weights):
            return Located(architecture, _existing(weights), None)
    tag = _default_tag(architecture, list(tags)) if weights is None else weights
    if tag not in tags:
        raise ModelError(
            f"open_clip has no weights {tag!r} for {architecture}",
            expected=close_names(tag, list(tags)) or f"a file, or one of {', '.join(tags)}",
            fix="give --weights TAG or FILE",
        )
    located = Located(architecture, _cached(tags[tag]), tag, tags[tag])
    if located.file is None:
        _require_network(located)
    return located


def obtain(located: Located) -> Located:
    """Download what is not on this machine, and find out the tag of a file that came without."""
    if located.file is None:
        return Located(located.architecture, _download(located), located.tag, located.settings)
    tags = _tags(located.architecture)
    if is_torchscript(located.file):
        tag = _tag_by_hash(located.file, tags)
        if tag is None or located.tag not in (None, tag):
            raise ModelError(
                f"{located.file} is TorchScript, which can hold code",
                got="a SHA-256 other than that of OpenAI's release",
                expected="a state dict, .pt or .safetensors",
                fix="save the model's state_dict() alone",
            )
        return Located(located.architecture, located.file, tag, tags[tag])
    if located.tag is not None or not tags:
        return located
    tag = _tag_by_path(located.file, tags) or _tag_by_agreement(tags)
    if tag is None and DEFAULT[1] in tags and _is_half_precision(located.file):
        tag = DEFAULT[1]
    if tag is None:
        _log.warning(
            "%s: its training is not known, so it gets the activation and normalisation of "
            "open_clip's %s; name its tag with TAG=%s (tags: %s)",
            located.file,
            located.architecture,
            located.file,
            ", ".join(tags),
        )
        return located
    return Located(located.architecture, located.file, tag, tags[tag])


def cached_clip_weights(architecture: str = DEFAULT[0], tag: str = DEFAULT[1]) -> Path | None:
    """The weights of a tag, if an earlier download left them on this machine."""
    return _cached(_tags(architecture)[tag])


def is_torchscript(file: Path) -> bool:
    """Whether a file is a TorchScript archive rather than a state dict."""
    if not zipfile.is_zipfile(file):
        return False
    with zipfile.ZipFile(file) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def read_torchscript(file: Path) -> dict[str, Tensor]:
    """Weights of a TorchScript archive whose content is known to be OpenAI's."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch calls TorchScript deprecated
        state = torch.jit.load(str(file), map_location="cpu").state_dict()
    return {key: value for key, value in state.items() if key not in _TORCHSCRIPT_EXTRAS}


def _tags(architecture: str) -> dict[str, dict[str, Any]]:
    from open_clip.pretrained import get_pretrained_cfg, list_pretrained_tags_by_model

    return {
        tag: get_pretrained_cfg(architecture, tag)
        for tag in list_pretrained_tags_by_model(architecture)
    }


def check_architecture(architecture: str) -> None:
    """Refuse a name that open_clip does not know, or whose text side cannot be built here.

    Raises
    ------
    ModelError
    """
    import open_clip

    known = open_clip.list_models()
    if architecture not in known:
        raise ModelError(
            f"open_clip has no model {architecture!r}",
            expected=close_names(architecture, known) or "a name such as ViT-B-32 or RN50",
            fix="see open_clip.list_models()",
        )
    text = open_clip.get_model_config(architecture)["text_cfg"]
    foreign = text.get("hf_model_name") or text.get("hf_tokenizer_name")
    if (foreign or "siglip" in architecture.lower()) and find_spec("transformers") is None:
        raise ModelError(
            f"open_clip:{architecture} reads its texts with the package transformers",
            got="not installed",
            fix="install transformers, or name another such as open_clip:ViT-B-32",
        )


def _default_tag(architecture: str, tags: list[str]) -> str:
    if DEFAULT[1] in tags:
        return DEFAULT[1]
    if len(tags) == 1:
        return tags[0]
    raise ModelError(
        f"open_clip:{architecture} has no default weights",
        expected=f"one of {', '.join(tags)}, or a file" if tags else "a file",
        fix="give --weights TAG or FILE",
    )


def _looks_like_file(weights: str) -> bool:
    path = Path(weights)
    return path.is_file() or path.suffix in _SUFFIXES or len(path.parts) > 1


def _existing(file: str) -> Path:
    if not Path(file).is_file():
        raise ModelError(
            f"no weights file {file}",
            expected="a tag, or a .pt, .pth, .bin or .safetensors file",
            fix="check the path given to --weights",
        )
    return Path(file)


def _cached(settings: dict[str, Any]) -> Path | None:
    """Where open_clip leaves the download of a tag, in the hub's cache or its own."""
    from huggingface_hub import try_to_load_from_cache

    if settings.get("hf_hub"):
        repository, names = _hub_files(settings["hf_hub"])
        for name in names:
            found = try_to_load_from_cache(repository, name)
            if isinstance(found, str):
                return Path(found)
    if settings.get("url"):
        file = Path("~/.cache/clip").expanduser() / Path(settings["url"]).name
        if file.is_file():
            return file
    return None


def _hub_files(hub: str) -> tuple[str, list[str]]:
    """Repository and file names of ``owner/name/`` or ``owner/name/file``, the better first."""
    from open_clip.constants import HF_SAFE_WEIGHTS_NAME, HF_WEIGHTS_NAME

    repository, _, name = hub.rpartition("/")
    if not name:
        return repository, [HF_SAFE_WEIGHTS_NAME, HF_WEIGHTS_NAME]
    return repository, list(dict.fromkeys([str(Path(name).with_suffix(".safetensors")), name]))


def _require_network(located: Located) -> None:
    from huggingface_hub import constants

    hub = located.settings.get("hf_hub")
    if hub and constants.HF_HUB_OFFLINE:
        reason: str | None = "HF_HUB_OFFLINE is set"
    else:
        host = constants.ENDPOINT if hub else located.settings["url"]
        reason = unreachable_reason(host, _PROBE_SECONDS)
    if reason is not None:
        raise _not_here(located, reason)


def _download(located: Located) -> Path:
    from open_clip.pretrained import download_pretrained

    try:
        return Path(download_pretrained(located.settings))
    except Exception as error:  # the hub client, urllib and open_clip each raise their own
        raise _not_here(located, f"{type(error).__name__}: {str(error).splitlines()[0]}") from error


def _not_here(located: Located, reason: str) -> ModelError:
    from huggingface_hub import constants

    where = located.settings.get("url")
    if located.settings.get("hf_hub"):
        repository, names = _hub_files(located.settings["hf_hub"])
        where = f"{constants.ENDPOINT}/{repository} ({names[0]})"
    return ModelError(
        f"the weights {located.tag!r} of open_clip:{located.architecture} are not on this machine "
        "and cannot be downloaded",
        got=reason,
        fix=f"on a machine with network fetch {where}, then give "
        f"--weights FILE ({located.tag}=FILE if it was renamed)",
    )


def _tag_by_hash(file: Path, tags: dict[str, dict[str, Any]]) -> str | None:
    with file.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    # OpenAI's URLs carry the hash as the folder of the file.
    return next((tag for tag, x in tags.items() if f"/{digest}/" in x.get("url", "")), None)


def _tag_by_path(file: Path, tags: dict[str, dict[str, Any]]) -> str | None:
    for tag, settings in tags.items():
        repository = settings.get("hf_hub", "").rpartition("/")[0]
        folders = {repository.rpartition("/")[2], f"models--{repository.replace('/', '--')}"}
        # OpenAI's own file is TorchScript: a state dict of that name is something else.
        named = tag != DEFAULT[1] and file.name == Path(settings.get("url", "")).name
        if named or (repository and folders & set(file.absolute().parts)):
            return tag
    return None


def _tag_by_agreement(tags: dict[str, dict[str, Any]]) -> str | None:
    trainings = {repr([settings.get(key) for key in _TRAINING]) for settings in tags.values()}
    return next(iter(tags)) if len(trainings) == 1 else None


def _is_half_precision(file: Path) -> bool:
    # OpenAI kept embeddings in single precision, and rounded every matrix and kernel.
    state = read_state_dict(str(file))
    weights = [x for name, x in state.items() if x.dim() > 1 and "embedding" not in name]
    return bool(weights) and all(torch.equal(x.half().to(x.dtype), x) for x in weights)
