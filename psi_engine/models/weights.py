"""Weights: read from a file, fitted into a module, fingerprinted."""

from __future__ import annotations

import hashlib
import pickle
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from psi_engine.errors import ModelError


def read_state_dict(file: str) -> dict[str, Tensor]:
    """Read a state dict from .safetensors or from a torch file, without running code from it.

    Parameters
    ----------
    file : str
        A checkpoint may wrap the state dict under ``state_dict``, ``model_state_dict`` or
        ``model``.

    Raises
    ------
    ModelError
        If the file is neither, is broken, or holds more than tensors.
    """
    try:
        if file.endswith(".safetensors"):
            from safetensors.torch import load_file

            content: Any = load_file(file)
        else:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # about pickles that are then refused anyway
                content = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:
        # Unpicklers meet foreign files with any exception; all mean that these are no weights.
        if isinstance(error, pickle.UnpicklingError):
            reason = "something else than tensors, which is not unpickled for safety"
        else:
            reason = f"{type(error).__name__}: {str(error)[:200]}"
        raise ModelError(
            f"{file} cannot be read as weights",
            got=reason,
            expected="a .safetensors file, or a state dict of tensors saved by torch.save",
            fix="save the model's state_dict() alone",
        ) from error
    for key in ("state_dict", "model_state_dict", "model"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
            break
    if not isinstance(content, dict) or not any(isinstance(v, Tensor) for v in content.values()):
        raise ModelError(
            f"{file} holds no state dict",
            got=type(content).__name__,
            expected="a mapping of names to tensors",
        )
    return {str(k): v for k, v in content.items() if isinstance(v, Tensor)}


def load_weights(module: nn.Module, state: Mapping[str, Tensor], name: str, file: str) -> None:
    """Load a state dict strictly, in place; values are cast to the module's own types.

    Raises
    ------
    ModelError
        If names or shapes differ; the message lists a few.
    """
    own = module.state_dict()
    for prefix in ("module.", "_orig_mod.", "model."):
        # What DataParallel, torch.compile and training frameworks put before each name.
        if all(k.startswith(prefix) for k in state) and not any(k.startswith(prefix) for k in own):
            state = {key.removeprefix(prefix): value for key, value in state.items()}
    # Counters that older and converted checkpoints leave out, and that evaluation never reads.
    missing = [k for k in own if k not in state and not k.endswith("num_batches_tracked")]
    unexpected = [key for key in state if key not in own]
    misshaped = [
        f"{key} {tuple(state[key].shape)} for {tuple(own[key].shape)}"
        for key in own
        if key in state and state[key].shape != own[key].shape
    ]
    faults = [
        f"{len(keys)} {kind} ({', '.join(keys[:3])}{', …' if len(keys) > 3 else ''})"
        for kind, keys in (
            ("missing", missing), ("unexpected", unexpected), ("of another shape", misshaped)
        )
        if keys
    ]  # fmt: skip
    if faults:
        raise ModelError(
            f"{file} holds weights of another architecture than {name}",
            got="; ".join(faults),
            expected=f"the {len(own)} tensors of {name}",
            fix="name the model they belong to, or build it in a package.module:factory",
        )
    module.load_state_dict(dict(state), strict=False)


def state_fingerprint(module: nn.Module, name: str) -> str:
    """SHA-256 of an architecture's name and of every parameter and buffer, hex."""
    digest = hashlib.sha256(name.encode())
    for key, value in sorted(module.state_dict().items()):
        if not isinstance(value, Tensor):
            continue
        digest.update(f"\0{key}\0{value.dtype}\0{tuple(value.shape)}\0".encode())
        raw = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        digest.update(raw.numpy().data)
    return digest.hexdigest()
