"""Cosine silhouettes of many small clusterings at once, from their Gram matrices."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from psi_engine.config import Backend
from psi_engine.errors import InputError
from psi_engine.ops import _cuda
from psi_engine.ops.backend import fall_back, in_chunks, memory_budget, resolve_backend
from psi_engine.ops.clustering import check_problems, members
from psi_engine.ops.fixed_point import BOUND, bad_gram, fraction_bits, to_grid

RESOLUTION = 2.0**-20
"""Distances below this are zero: cosines of float32 rows are not known more finely."""

BLOCK = 128
"""Threads of a block of the CUDA kernel, one block per problem."""

_GRAM_TYPES = {torch.float32: "float", torch.float64: "double"}
_MOST_BLOCKS = 1 << 16


def silhouette(
    grams: Tensor,
    assignments: Tensor,
    *,
    mask: Tensor | None = None,
    backend: Backend = "auto",
    memory: int | None = None,
) -> Tensor:
    """Cosine silhouette of every patch.

    Parameters
    ----------
    grams : Tensor, float (n, patches, patches)
        Gram matrices of unit rows; the distance is 1 − G.
    assignments : Tensor, int64 (n, patches)
        Clusters; −1 = the patch is in none and counts nowhere.
    mask : Tensor, bool (n, patches), optional
        False = the patch does not exist.
    backend : {"auto", "torch", "numba", "cuda"}
    memory : int, optional
        Bytes for temporaries.

    Returns
    -------
    Tensor
        float64 (n, patches) in [−1, 1]; NaN where masked or assigned to −1.

    Raises
    ------
    InputError
        A shape or dtype is wrong, or an entry is no cosine.

    Notes
    -----
    With a(i) the mean distance to the other members of i's cluster and b(i) the least mean
    distance to the members of another, s(i) = (b − a) / max(a, b). A singleton scores 0, so does
    a patch where max(a, b) < 2⁻²⁰ (all coincide), and so does every patch of a lone cluster.

    References
    ----------
    Rousseeuw, "Silhouettes: a graphical aid to the interpretation and validation of cluster
    analysis", J. Comput. Appl. Math. 20 (1987).
    """
    check_problems(grams, None, mask)
    if assignments.shape != grams.shape[:2] or assignments.dtype != torch.int64:
        raise InputError(
            "assignments do not fit grams",
            got=f"{tuple(assignments.shape)} {assignments.dtype}",
            expected=f"{tuple(grams.shape[:2])} torch.int64",
        )
    labels = assignments if mask is None else assignments.masked_fill(~mask, -1)
    if labels.numel() == 0:
        return torch.empty(labels.shape, dtype=torch.float64, device=grams.device)
    k = max(1, int(labels.max()) + 1)
    chosen = resolve_backend(backend, grams)
    n, patches = labels.shape
    if chosen == "numba":
        from psi_engine.ops import _numba

        return _numba.silhouette(grams, labels, k)

    if chosen == "cuda":
        reason = unsupported_reason(grams, k)
        if reason is None:
            return _launch(grams, labels, k)
        fall_back(backend, "the silhouette kernel", reason)

    def run(part: slice) -> Tensor:
        return of_grid(to_grid(grams[part], labels[part] >= 0), labels[part], k)

    each = 8 * patches * (4 * patches + 6 * k + 8)
    return torch.cat(in_chunks(run, n, each, memory_budget(grams.device, memory)))


def of_grid(grid: Tensor, labels: Tensor, k: int) -> Tensor:
    """Silhouettes from Gram matrices on the grid, in torch; see :func:`silhouette`."""
    inside = members(labels, k)  # (n, k, patches)
    sums = inside @ grid
    sizes = inside.sum(-1)
    home = labels.clamp(min=0).unsqueeze(1)
    size = sizes.gather(1, home.squeeze(1))
    norms = grid.diagonal(dim1=1, dim2=2)
    within = 1 - (sums.gather(1, home).squeeze(1) - norms) / (size - 1).clamp(min=1)
    apart = 1 - sums / sizes.clamp(min=1).unsqueeze(-1)
    apart = apart.masked_fill((sizes == 0).unsqueeze(-1), torch.inf).scatter(1, home, torch.inf)
    between = apart.amin(1)
    widest = torch.maximum(within, between)
    defined = (size > 1) & (widest >= RESOLUTION) & between.isfinite()
    value = torch.where(defined, (between - within) / widest, 0.0).clamp(-1, 1)
    return value.masked_fill(labels < 0, torch.nan)


def shared_bytes(patches: int, k: int, item: int, tiled: bool) -> int:
    """Dynamic shared memory of one block; the layout stands at the head of the kernel."""
    ints = patches + k + (patches + k) % 2
    return 8 * k * BLOCK + 4 * ints + (patches * (patches | 1) * item if tiled else 0)


def unsupported_reason(grams: Tensor, k: int) -> str | None:
    """Why the CUDA kernel cannot take these Gram matrices, or None when it can."""
    if grams.dtype not in _GRAM_TYPES:
        return f"it takes float32 or float64, not {grams.dtype}"
    needed = shared_bytes(grams.shape[1], k, grams.element_size(), tiled=False)
    there = _cuda.shared_memory_limit(grams.device)
    if needed > there:
        return f"{k} clusters of {grams.shape[1]} patches need {needed} B shared, {there} are there"
    return None


def _launch(grams: Tensor, labels: Tensor, k: int) -> Tensor:
    n, patches = labels.shape
    device, item = grams.device, grams.element_size()
    tiled = shared_bytes(patches, k, item, True) <= _cuda.shared_memory_limit(device)
    values = torch.empty(labels.shape, dtype=torch.float64, device=device)
    bad = torch.zeros(1, dtype=torch.int32, device=device)
    scale = 2.0 ** fraction_bits(patches)
    defines = {
        "GRAM_T": _GRAM_TYPES[grams.dtype],
        "BLOCK": str(BLOCK),
        "BOUND": repr(BOUND),
        "RESOLUTION": repr(RESOLUTION),
    }
    arguments = (
        grams.contiguous(),
        labels.contiguous(),
        values,
        bad,
        np.int32(n),
        np.int32(patches),
        np.int32(k),
        np.float64(scale),
        np.float64(1 / scale),
        np.int32(tiled),
    )
    function = _cuda.kernel("silhouette", defines, device)
    needed = shared_bytes(patches, k, item, tiled)
    _cuda.launch(function, min(n, _MOST_BLOCKS), BLOCK, arguments, needed, device)
    if bool(bad):
        raise bad_gram()
    return values
