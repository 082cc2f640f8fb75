"""Which channels can be scored, and why the others cannot."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from psi_engine.config import ScoreConfig
from psi_engine.ops.exact import UnitRows
from psi_engine.scores.inputs import LEAST_PATCHES


class Verdict(NamedTuple):
    """scorable : bool (channels,). remarks : (row, status, reason) of every channel not ``ok``."""

    scorable: Tensor
    remarks: list[tuple[int, str, str]]


def triage(unit: UnitRows, keys: Tensor, valid: Tensor, config: ScoreConfig) -> Verdict:
    """Find channels with broken, too few or too similar patches.

    Parameters
    ----------
    unit : UnitRows of (channels, patches, dim)
    keys : Tensor, int64 (channels, patches)
        A hash of each row.
    valid : Tensor, bool (channels, patches)
        Patches that exist.

    Notes
    -----
    A channel with NaN, infinite or zero rows is broken and fails: leaving the rows out would
    hide a fault of the encoder. One with fewer patches than the others is ``short``.
    """
    patches = valid.shape[1]
    count = valid.sum(1)
    broken = (valid & ~unit.finite).sum(1)
    empty = (valid & unit.finite & ~unit.nonzero).sum(1)
    different = _count_different(keys, valid)
    table = torch.stack([count, broken, empty, different], 1)
    usual = (count == patches) & (broken == 0) & (empty == 0) & (different >= LEAST_PATCHES)
    usual &= count > config.k_min
    scorable = usual.clone()
    remarks = []
    for row in torch.nonzero(~usual)[:, 0].tolist():
        have, bad, zero, unlike = table[row].tolist()
        status, reason = _remark(have, bad, zero, unlike, patches, config)
        scorable[row] = status == "short"
        remarks.append((row, status, reason))
    return Verdict(scorable, remarks)


def _remark(
    count: int, broken: int, empty: int, different: int, patches: int, config: ScoreConfig
) -> tuple[str, str]:
    if count == 0:
        return "failed", "no patches (a dead channel, or all masked)"
    if broken:
        return "failed", f"{broken} of {count} embeddings hold NaN or infinite values"
    if empty:
        return "failed", f"{empty} of {count} embeddings are zero and have no direction"
    if different < LEAST_PATCHES:
        return "failed", f"{different} different patches, at least {LEAST_PATCHES} are needed"
    if count <= config.k_min:
        return "failed", f"{count} patches are too few for k_min = {config.k_min}"
    reason = f"scored on {count} of {patches} patches"
    if config.k_max > count - 1:
        reason += f", k_max clipped to {count - 1}"
    return "short", reason


def _count_different(keys: Tensor, valid: Tensor) -> Tensor:
    first = keys.gather(1, valid.to(torch.uint8).argmax(1, keepdim=True))
    ordered = torch.where(valid, keys, first).sort(1).values
    return (ordered[:, 1:] != ordered[:, :-1]).sum(1) + valid.any(1)
