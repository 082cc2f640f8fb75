"""What a caller hands to :func:`psi_engine.score`, checked whole before any work."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from psi_engine.config import ScoreConfig
from psi_engine.errors import InputError
from psi_engine.ops.backend import resolve_device
from psi_engine.ops.exact import row_keys, unit_rows
from psi_engine.scores.distinctness import Texts, texts_at_level
from psi_engine.scores.pool import Pool

LEAST_PATCHES = 4
"""Fewer patches have no clusters to test."""

_ROWS_AT_ONCE = 512


@dataclass(frozen=True)
class Inputs:
    """Checked inputs: where the caller left them, except texts, which are on ``device``."""

    embeddings: Tensor  # floating (channels, patches, dim)
    mask: Tensor  # bool (channels, patches)
    labels: Tensor | None  # int64 (channels, patches)
    channel_ids: Tensor | None  # int64 (channels,)
    texts: Texts | None
    unrelated: Texts | None
    pool: Pool
    device: torch.device
    notes: tuple[str, ...]


def check_inputs(
    embeddings: object,
    labels: object,
    text_embeddings: object,
    concept_ids: object,
    pool: object,
    unrelated_text_embeddings: object,
    unrelated_concept_ids: object,
    channel_ids: object,
    mask: object,
    config: ScoreConfig,
    device: str | torch.device,
) -> Inputs:
    """Turn the arguments of :func:`psi_engine.score` into tensors, or raise.

    Raises
    ------
    InputError
        A type, rank, dtype, shape or size is wrong; a text or pool row has no direction.
    DeviceError
        The device is not there.
    """
    notes: list[str] = []
    x = _floats("embeddings", embeddings)
    if x.ndim != 3:
        hint = "add a channel axis with [None]" if x.ndim == 2 else None
        raise InputError(
            "embeddings have the wrong rank",
            got=tuple(x.shape),
            expected="(channels, patches, dim)",
            fix=hint,
        )
    channels, patches, dim = x.shape
    if channels < 1 or dim < 2:
        raise InputError(
            "embeddings are empty",
            got=tuple(x.shape),
            expected="at least 1 channel and 2 dimensions",
        )
    if patches < LEAST_PATCHES:
        raise InputError(
            "too few patches",
            got=f"{patches} in embeddings of shape {tuple(x.shape)}",
            expected=f"at least {LEAST_PATCHES} patches",
            fix="mine more sites per channel (top_k)",
        )
    if config.k_min > patches - 1:
        raise InputError(
            "k_min does not fit the patches", got=config.k_min, expected=f"at most {patches - 1}"
        )
    stay = device == "auto" and x.device.type == "cuda"
    where = x.device if stay else resolve_device(device)
    valid = _shaped("mask", mask, (channels, patches), x.device, torch.bool)
    if valid is None:
        valid = torch.ones(channels, patches, dtype=torch.bool, device=x.device)
    known = _integers("labels", labels, (channels, patches), x.device)
    if known is not None and bool((known < -1).any()):
        raise InputError(
            "labels below -1", got=int(known.min()), expected="-1 (unknown) or a class ≥ 0"
        )
    ids = _integers("channel_ids", channel_ids, (channels,), x.device)
    texts = _texts(
        "text_embeddings", text_embeddings, concept_ids, "concept_ids", dim, config, where
    )
    bank = _texts(
        "unrelated_text_embeddings",
        unrelated_text_embeddings,
        unrelated_concept_ids,
        "unrelated_concept_ids",
        dim,
        config,
        where,
    )
    if config.d_null == "unrelated-text" and bank is not None:
        _check_alike(concept_ids is not None, unrelated_concept_ids is not None)
        _check_bank(texts, bank, notes)
    reference = _pool(pool, x, valid, where, notes)
    return Inputs(x, valid, known, ids, texts, bank, reference, where, tuple(notes))


def as_tensor(name: str, value: Any) -> Tensor:
    """A tensor that shares memory with a torch tensor, NumPy array or DLPack producer."""
    if isinstance(value, Tensor):
        return value.detach()
    if isinstance(value, np.ndarray):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # read-only arrays: never written to
                return torch.from_numpy(np.ascontiguousarray(value))
        except TypeError as error:
            raise InputError(f"{name} has an unsupported dtype", got=value.dtype) from error
    if hasattr(value, "__dlpack__"):
        return torch.from_dlpack(value)
    raise InputError(
        f"{name} is not an array",
        got=type(value).__name__,
        expected="a torch tensor, a NumPy array or an object with __dlpack__",
    )


def _floats(name: str, value: object) -> Tensor:
    tensor = as_tensor(name, value)
    if not tensor.is_floating_point():
        raise InputError(f"{name} must be floating point", got=tensor.dtype)
    return tensor


def _shaped(
    name: str, value: object, shape: tuple[int, ...], device: torch.device, dtype: torch.dtype
) -> Tensor | None:
    if value is None:
        return None
    tensor = as_tensor(name, value)
    if tuple(tensor.shape) != shape:
        raise InputError(f"{name} has the wrong shape", got=tuple(tensor.shape), expected=shape)
    if tensor.dtype != dtype:
        raise InputError(f"{name} has the wrong dtype", got=tensor.dtype, expected=dtype)
    return tensor.to(device)


def _integers(
    name: str, value: object, shape: tuple[int, ...], device: torch.device
) -> Tensor | None:
    if value is None:
        return None
    tensor = as_tensor(name, value)
    if tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool:
        raise InputError(f"{name} must be integers", got=tensor.dtype, expected="int64")
    return _shaped(name, tensor.to(torch.int64), shape, device, torch.int64)


def _texts(
    name: str,
    embeddings: object,
    concept_ids: object,
    ids_name: str,
    dim: int,
    config: ScoreConfig,
    device: torch.device,
) -> Texts | None:
    if embeddings is None:
        if concept_ids is not None:
            raise InputError(f"{ids_name} given without {name}", fix=f"pass {name} too")
        return None
    x = _floats(name, embeddings)
    if x.ndim != 2 or x.shape[1] != dim:
        raise InputError(
            f"{name} do not fit the embeddings",
            got=tuple(x.shape),
            expected=f"(prompts, {dim})",
            fix="embed prompts and patches with the same encoder",
        )
    if len(x) < 2:
        raise InputError(
            f"{name} holds too few prompts",
            got=len(x),
            expected="at least 2 (D compares prompts with each other)",
        )
    ids = _integers(ids_name, concept_ids, (len(x),), device)
    if ids is None:
        ids = torch.arange(len(x), device=device)
    texts = texts_at_level(x.to(device), ids, config.d_level, name)
    if len(texts.rows) < 2:
        raise InputError(
            f"{name} holds a single concept",
            got=f"one distinct value in {ids_name}",
            expected="at least 2 concepts",
            fix="name more concepts, or use d_level='prompt'",
        )
    return texts


def _check_alike(vocabulary_named: bool, bank_named: bool) -> None:
    """Refuse concepts on one side and prompts on the other: draws would differ in size."""
    if vocabulary_named != bank_named:
        given, missing = ["concept_ids", "unrelated_concept_ids"][:: 1 if vocabulary_named else -1]
        raise InputError(
            "the vocabulary and the unrelated bank are not grouped alike",
            got=f"{given} without {missing}",
            expected="both (as many concepts are drawn as the vocabulary holds) or neither",
            fix=f"pass {missing} too; arange where each prompt is a concept",
        )


def _check_bank(texts: Texts | None, bank: Texts, notes: list[str]) -> None:
    if texts is None:
        raise InputError(
            "unrelated_text_embeddings given without text_embeddings",
            fix="pass text_embeddings (D needs them), or leave the bank out",
        )
    have, need = len(bank.concept_ids), len(texts.concept_ids)
    if have < need:
        raise InputError(
            "the unrelated bank is smaller than the vocabulary",
            got=f"{have} concepts for a vocabulary of {need}",
            expected=f"at least {need}, better {3 * need}",
            fix="enlarge the bank, or use d_null='text-shuffle'",
        )
    if have < 3 * need:
        notes.append(
            f"the unrelated bank has {have} concepts, less than three times the vocabulary's "
            f"{need}: its draws overlap and the null's spread is too small"
        )


def _pool(pool: object, x: Tensor, valid: Tensor, device: torch.device, notes: list[str]) -> Pool:
    patches, dim = x.shape[1:]
    if pool is None:
        notes.append("no pool given: the pool is every embedding of this call")
        source, allowed = x.reshape(-1, dim), valid.reshape(-1)
    else:
        source = _floats("pool", pool)
        if source.ndim != 2 or source.shape[1] != dim:
            raise InputError(
                "pool does not fit the embeddings", got=tuple(source.shape), expected=f"(n, {dim})"
            )
        allowed = torch.ones(len(source), dtype=torch.bool, device=source.device)
    nonzero, keys = _directions(source)
    usable = allowed & nonzero
    left_out = int(allowed.sum() - usable.sum())
    reference = Pool(source, usable, device)
    distinct = len(torch.unique(keys[usable]))
    need = int(valid.sum(1).max())
    if pool is not None and distinct < need:
        raise InputError(
            "the pool is smaller than a channel",
            got=f"{len(reference)} usable rows, {distinct} of them distinct",
            expected=f"at least {need} distinct rows, better {10 * patches}",
            fix="pass more reference patches",
        )
    if pool is not None and left_out:
        notes.append(f"{left_out} pool rows are NaN, infinite or zero and were left out")
    if distinct < 10 * patches:
        notes.append(
            f"the pool has {distinct} distinct rows, fewer than ten times the {patches} patches "
            "of a channel: its draws overlap and pool nulls are too narrow"
        )
    return reference


def _directions(source: Tensor) -> tuple[Tensor, Tensor]:
    """Which rows (n, dim) have a direction, bool (n,), and a hash of it, int64 (n,)."""
    nonzero = torch.zeros(len(source), dtype=torch.bool, device=source.device)
    keys = torch.zeros(len(source), dtype=torch.int64, device=source.device)
    for start in range(0, len(source), _ROWS_AT_ONCE):
        part = slice(start, start + _ROWS_AT_ONCE)
        unit = unit_rows(source[part])
        nonzero[part], keys[part] = unit.nonzero, row_keys(unit.rows)
    return nonzero, keys
