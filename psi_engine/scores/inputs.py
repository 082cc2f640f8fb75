"""What a caller hands to :func:`psi_engine.score`, checked whole before any work."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from psi_engine.config import ScoreConfig
from psi_engine.errors import InputError
from psi_engine.ops.backend import resolve_device
from psi_engine.ops.exact import has_direction, row_keys, unit_rows
from psi_engine.scores.arrays import booleans, floats, integers, row_slices
from psi_engine.scores.distinctness import Texts, texts_at_level
from psi_engine.scores.pool import Pool

LEAST_PATCHES = 4
"""Fewer patches have no clusters to test."""

_HASHED = 512
# Sets hashed together while different rows are counted: the count is usually reached in the first.


class Labels(NamedTuple):
    """values : integer (channels, patches), where the caller left them.

    labelled, unlabelled : channels with patches that have a known label, and without one.
    """

    values: Tensor
    labelled: int
    unlabelled: int


@dataclass(frozen=True)
class Inputs:
    """Checked inputs: where the caller left them, except texts, which are on ``device``."""

    embeddings: Tensor  # floating (channels, patches, dim)
    mask: Tensor  # bool (channels, patches)
    labels: Labels | None
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
    x = floats("embeddings", embeddings)
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
    valid = _mask(mask, (channels, patches), x.device)
    known = _labels(labels, valid)
    ids = _channel_ids(channel_ids, channels)
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
    elif bank is not None:
        notes.append(
            f"unrelated_text_embeddings are not used: d_null is {config.d_null!r}, "
            "and only 'unrelated-text' draws from them"
        )
    reference = _pool(pool, x, valid, where, notes)
    return Inputs(x, valid, known, ids, texts, bank, reference, where, tuple(notes))


def _mask(mask: object, shape: tuple[int, int], device: torch.device) -> Tensor:
    if mask is None:
        return torch.ones(1, 1, dtype=torch.bool, device=device).expand(shape)
    return booleans("mask", mask, shape)


def _channel_ids(value: object, channels: int) -> Tensor | None:
    if value is None:
        return None
    ids = integers("channel_ids", value, (channels,)).to(torch.int64)
    found, times = torch.unique(ids, return_counts=True)
    if len(found) < channels:
        raise InputError(
            "channel_ids are not distinct",
            got=f"{int(found[times > 1][0])} {int(times.max())} times",
            expected="a number of its own for each channel: equal ones would draw equal nulls",
            fix="number the channels, or leave channel_ids out",
        )
    return ids


def _labels(labels: object, valid: Tensor) -> Labels | None:
    """Check labels chunk by chunk, and count whose patches have any."""
    if labels is None:
        return None
    values = integers("labels", labels, tuple(valid.shape))
    labelled = alive = 0
    for rows in row_slices(len(values), 16 * values.shape[1]):
        part, there = values[rows].to(torch.int64), valid[rows].to(values.device)
        if bool((part < -1).any()):
            raise InputError(
                "labels below -1",
                got=int(part.min()),
                expected="-1 (unknown) or a class ≥ 0",
                fix="mark unknown classes by -1",
            )
        labelled += int(((part >= 0) & there).any(1).sum())
        alive += int(there.any(1).sum())
    return Labels(values, labelled, alive - labelled)


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
    x = floats(name, embeddings)
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
    if concept_ids is None:
        ids = torch.arange(len(x), device=device)
    else:
        ids = integers(ids_name, concept_ids, (len(x),)).to(device, torch.int64)
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
        source, allowed = x, valid
        if 3 * int(valid.sum(1).max()) > int(valid.sum()):
            notes.append(
                "a channel's own patches are more than a third of the pool: pool nulls compare it "
                "with itself and hide its clusters; give pool= (patches of many images)"
            )
    else:
        flat = floats("pool", pool)
        if flat.ndim != 2 or flat.shape[1] != dim:
            raise InputError(
                "pool does not fit the embeddings",
                got=tuple(flat.shape),
                expected=f"(n, {dim})",
                fix="embed the pool with the encoder of the patches, one row each",
            )
        source = flat[:, None]
        allowed = torch.ones(1, 1, dtype=torch.bool, device=flat.device).expand(len(flat), 1)
    reference, broken, distinct = survey(source, allowed, 10 * patches, device)
    need = int(valid.sum(1).max())
    if pool is not None and distinct < need:
        raise InputError(
            "the pool is smaller than a channel",
            got=f"{len(reference)} usable rows, {distinct} of them distinct",
            expected=f"at least {need} distinct rows, better {10 * patches}",
            fix="pass more reference patches",
        )
    if pool is not None and broken:
        notes.append(f"{broken} pool rows are NaN, infinite or zero and were left out")
    if distinct < 10 * patches:
        notes.append(
            f"the pool has {distinct} distinct rows, fewer than ten times the {patches} patches "
            "of a channel: its draws overlap and pool nulls are too narrow"
        )
    return reference


def survey(
    source: Tensor, allowed: Tensor, enough: int, device: torch.device
) -> tuple[Pool, int, int]:
    """Look through possible pool rows once, a few MiB at a time.

    Parameters
    ----------
    source : Tensor, floating (sets, rows, dim)
    allowed : Tensor, bool (sets, rows)
        Rows that exist.
    enough : int
        Different rows are counted up to here: hashing every row of a large call is not needed.

    Returns
    -------
    tuple of Pool, int and int
        The usable rows, how many allowed ones have no direction, and how many different ones
        there are (all of them, or at least ``enough``).
    """
    sets, rows, dim = source.shape
    missing, broken = [torch.empty(0, dtype=torch.int64)], 0
    seen = torch.empty(0, dtype=torch.int64, device=source.device)
    for part in row_slices(sets, rows * dim * source.element_size()):
        there = allowed[part].to(source.device)
        usable = there & has_direction(source[part])
        broken += int((there & ~usable).sum())
        missing.append(torch.nonzero(~usable.flatten()).squeeze(1).cpu() + part.start * rows)
        if len(seen) < enough:
            for held, good in zip(source[part].split(_HASHED), usable.split(_HASHED), strict=True):
                seen = torch.unique(torch.cat([seen, row_keys(unit_rows(held[good]).rows)]))
                if len(seen) >= enough:
                    break
    return Pool(source, torch.cat(missing), device), broken, len(seen)
