"""Normalised mutual information of labelings, observed and under permutation.

Entropies are sums of n·log n over counts. The counts are integers up to the number of patches,
so n·log n is looked up in a fixed-point table: the sums are exact, and every backend, order of
patches and naming of labels gives the same bits.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from psi_engine.config import Backend
from psi_engine.errors import InputError
from psi_engine.ops import _cuda
from psi_engine.ops.backend import fall_back, in_chunks, memory_budget, resolve_backend
from psi_engine.ops.random import hash_keys, string_key, uniform

SHUFFLE = string_key("ops.contingency.shuffle")
"""Separates the draws of the shuffles from others made with the same keys."""

BLOCKS = (128, 64, 32)
"""Threads a block of the CUDA kernel may have, one per replicate: the first that fits is taken."""

_MOST_BLOCKS = 1 << 16


def normalized_mutual_information(
    assignments: Tensor, labels: Tensor, *, memory: int | None = None
) -> Tensor:
    """Normalised mutual information of two labelings of the same patches.

    Parameters
    ----------
    assignments, labels : Tensor, integer (..., patches), broadcast against each other
        A negative value in either leaves the patch out.
    memory : int, optional
        Bytes for temporaries.

    Returns
    -------
    Tensor
        float64 (...) in [0, 1]; 0 where either labeling has no entropy.

    Raises
    ------
    InputError
        A shape or dtype is wrong.

    Notes
    -----
    2·I(A; L) / (H(A) + H(L)), natural logarithms, arithmetic normalisation. With T(n) = n·log n
    and N patches, N·I = ΣT(n_ij) − ΣT(a_i) − ΣT(b_j) + T(N) and N·H = T(N) − ΣT.

    References
    ----------
    Vinh, Epps, Bailey, "Information theoretic measures for clusterings comparison", JMLR 11
    (2010), table 2 (NMI_sum).
    """
    _check_integers(assignments, labels)
    assignments, labels = torch.broadcast_tensors(assignments, labels)
    shape = assignments.shape
    first, second = assignments.reshape(-1, shape[-1]), labels.reshape(-1, shape[-1])

    def run(part: slice) -> Tensor:
        a, b, _ = _known_first(first[part], second[part])
        return _nmi(_joint(a, b), a, b)

    if not first.numel():
        return torch.zeros(shape[:-1], dtype=torch.float64, device=assignments.device)
    each = 8 * (3 * shape[-1] ** 2 + 16 * shape[-1])
    budget = memory_budget(assignments.device, memory)
    return torch.cat(in_chunks(run, len(first), each, budget)).reshape(shape[:-1])


def permutation_nmi(
    assignments: Tensor,
    labels: Tensor,
    keys: Tensor,
    replicates: int,
    *,
    backend: Backend = "auto",
    memory: int | None = None,
) -> Tensor:
    """NMI of assignments and labels shuffled against each other.

    Parameters
    ----------
    assignments, labels : Tensor, integer (channels, patches)
        A negative value in either leaves the patch out; the others are shuffled among themselves.
    keys : Tensor, int64 (channels,)
        Randomness of each channel; replicate m of a channel depends on (key, m) alone.
    replicates : int
        Shuffles per channel, at least 1.
    backend : {"auto", "torch", "numba", "cuda"}
    memory : int, optional
        Bytes for temporaries of the torch path.

    Returns
    -------
    Tensor
        float64 (channels, replicates), as :func:`normalized_mutual_information`.

    Raises
    ------
    InputError
        A shape, dtype or option is wrong.

    Notes
    -----
    Fisher–Yates shuffles, so that every permutation is equally likely.
    """
    _check_integers(assignments, labels)
    if assignments.ndim != 2 or labels.shape != assignments.shape:
        raise InputError(
            "assignments and labels must both be (channels, patches)",
            got=f"{tuple(assignments.shape)} and {tuple(labels.shape)}",
        )
    if keys.shape != assignments.shape[:1] or keys.dtype != torch.int64:
        raise InputError(
            "keys do not fit assignments",
            got=f"{tuple(keys.shape)} {keys.dtype}",
            expected=f"({len(assignments)},) torch.int64",
        )
    if replicates < 1:
        raise InputError("replicates is too small", got=replicates, expected="at least 1")
    chosen = resolve_backend(backend, assignments)
    channels, patches = assignments.shape
    if assignments.numel() == 0:
        return torch.zeros(channels, replicates, dtype=torch.float64, device=assignments.device)
    a, b, count = _known_first(assignments, labels)
    if chosen == "numba":
        from psi_engine.ops import _numba

        return _numba.permutation_nmi(a, b, count, keys, replicates, _table(patches))
    if chosen == "cuda":
        labels_used = int(b.max()) + 1
        reason = unsupported_reason(patches, labels_used, _cuda.shared_memory_limit(a.device))
        if reason is None:
            return _launch(a, b, count, keys, replicates, labels_used)
        fall_back(backend, "the contingency kernel", reason)

    def run(part: slice) -> Tensor:
        rows = torch.arange(part.start, part.stop, device=a.device)
        channel, replicate = rows // replicates, rows % replicates
        shuffled = _shuffle(b[channel], count[channel], keys[channel], replicate)
        mine = a[channel]
        return _nmi(_joint(mine, shuffled), mine, shuffled)

    cells = int(a.max() + 2) * int(b.max() + 2)
    each = 8 * (3 * cells + 12 * patches)
    parts = in_chunks(run, channels * replicates, each, memory_budget(a.device, memory))
    return torch.cat(parts).reshape(channels, replicates)


def _check_integers(assignments: Tensor, labels: Tensor) -> None:
    for name, value in (("assignments", assignments), ("labels", labels)):
        if value.is_floating_point() or value.is_complex() or value.ndim < 1:
            raise InputError(
                f"{name} must be integers (..., patches)",
                got=f"{tuple(value.shape)} {value.dtype}",
            )
    try:
        # NumPy's, because torch's loads SymPy, which takes seconds
        np.broadcast_shapes(assignments.shape, labels.shape)
    except ValueError as error:
        raise InputError(
            "assignments and labels do not fit each other",
            got=f"{tuple(assignments.shape)} and {tuple(labels.shape)}",
        ) from error


def _known_first(assignments: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Both labelings (n, patches) numbered densely from 0, known patches first, then −1; counts."""
    known = (assignments >= 0) & (labels >= 0)
    order = (~known).to(torch.uint8).argsort(dim=-1, stable=True)
    count = known.sum(-1)
    there = torch.arange(known.shape[-1], device=known.device) < count.unsqueeze(-1)
    return (
        _dense(assignments.gather(-1, order), there),
        _dense(labels.gather(-1, order), there),
        count,
    )


def _dense(values: Tensor, there: Tensor) -> Tensor:
    ordered, order = values.to(torch.int64).masked_fill(~there, -1).sort(-1)
    new = torch.zeros_like(ordered)
    new[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    rank = new.cumsum(-1) - (ordered[:, :1] < 0).to(torch.int64)  # −1 keeps rank −1
    return torch.empty_like(rank).scatter_(-1, order, rank)


def _shuffle(values: Tensor, count: Tensor, keys: Tensor, replicate: Tensor) -> Tensor:
    """Fisher–Yates over the first ``count`` entries of each row."""
    values = values.clone()
    for i in range(values.shape[-1] - 1, 0, -1):
        at = (uniform(keys, SHUFFLE, replicate, i) * (i + 1)).to(torch.int64)
        at = torch.where(count > i, at, i).unsqueeze(-1)
        here = values[:, i : i + 1].clone()
        values[:, i : i + 1] = values.gather(-1, at)
        values.scatter_(-1, at, here)
    return values


def _counts(cells: Tensor, size: int) -> Tensor:
    """Occurrences (n, size) of each cell number; −1 is not counted."""
    table = torch.zeros(len(cells), size + 1, dtype=torch.int64, device=cells.device)
    table.scatter_add_(-1, cells.masked_fill(cells < 0, size), torch.ones_like(cells))
    return table[:, :size]


def _joint(a: Tensor, b: Tensor) -> Tensor:
    """Contingency tables (n, cells) of two dense labelings; −1 is not counted."""
    width = int(b.max()) + 1
    cells = (a * width + b).masked_fill(a < 0, -1)
    return _counts(cells, (int(a.max()) + 1) * width)


def _nmi(joint: Tensor, a: Tensor, b: Tensor) -> Tensor:
    table = torch.from_numpy(_table(a.shape[-1])).to(a.device)
    t_joint = table[joint].sum(-1)
    t_a = table[_counts(a, int(a.max()) + 1)].sum(-1)
    t_b = table[_counts(b, int(b.max()) + 1)].sum(-1)
    t_all = table[(a >= 0).sum(-1)]
    both = 2 * t_all - t_a - t_b
    informative = (t_a < t_all) & (t_b < t_all)
    mutual = (t_joint - t_a - t_b + t_all).clamp(min=0)
    return torch.where(informative, 2 * mutual.double() / both.clamp(min=1).double(), 0.0)


class Launch(NamedTuple):
    """How the CUDA kernel runs: macros, threads per block, dynamic shared memory in bytes."""

    defines: dict[str, str]
    block: int
    shared_bytes: int


def plan(patches: int, labels: int, shared_limit: int) -> Launch | None:
    """The widest block that fits, or None; the layout stands at the head of the kernel."""
    item = 1 if patches < 1 << 8 else 2
    for block in BLOCKS if patches < 1 << 16 else ():
        needed = 20 * patches + item * block * (patches + labels)
        if needed <= shared_limit:
            counted = {1: "unsigned char", 2: "unsigned short"}[item]
            return Launch({"BLOCK": str(block), "COUNT_T": counted}, block, needed)
    return None


def unsupported_reason(patches: int, labels: int, shared_limit: int) -> str | None:
    """Why the CUDA kernel cannot take sets of this size, or None when it can."""
    if plan(patches, labels, shared_limit) is None:
        return f"{patches} patches with {labels} labels do not fit {shared_limit} B shared"
    return None


def kernel_arguments(
    a: Tensor, b: Tensor, count: Tensor, keys: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """What the kernel reads: cluster, order, label, count, marginals, keys, table."""
    order = a.masked_fill(a < 0, a.shape[1]).argsort(dim=-1, stable=True)
    table = torch.from_numpy(_table(a.shape[-1])).to(a.device)
    sums = [table[_counts(x, int(x.max()) + 1)].sum(-1) for x in (a, b)]
    return (
        a.gather(-1, order).to(torch.int32),
        order.to(torch.int32),
        b.to(torch.int32).contiguous(),
        count.to(torch.int32),
        torch.stack([*sums, table[count]], dim=-1),
        hash_keys(keys, SHUFFLE),
        table,
    )


def _launch(
    a: Tensor, b: Tensor, count: Tensor, keys: Tensor, replicates: int, labels: int
) -> Tensor:
    channels, patches = a.shape
    how = plan(patches, labels, _cuda.shared_memory_limit(a.device))
    assert how is not None  # unsupported_reason has asked
    out = torch.empty(channels, replicates, dtype=torch.float64, device=a.device)
    sizes = (np.int32(x) for x in (channels, patches, labels, replicates))
    arguments = (*kernel_arguments(a, b, count, keys), out, *sizes)
    grid = min(channels * -(-replicates // how.block), _MOST_BLOCKS)
    function = _cuda.kernel("contingency", how.defines, a.device)
    _cuda.launch(function, grid, how.block, arguments, how.shared_bytes, a.device)
    return out


@lru_cache(maxsize=16)
def _table(patches: int) -> np.ndarray:
    """n·log n for n = 0..patches, as int64 multiples of 2⁻³² (exact sums up to 10⁸ patches)."""
    n = np.arange(patches + 1, dtype=np.float64)
    return np.rint(n * np.log(np.maximum(n, 1)) * 2.0**32).astype(np.int64)
