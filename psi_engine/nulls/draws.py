"""Keyed draws the nulls share: subsets, normals, chi variates and random rotations."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import special
from torch import Tensor

from psi_engine.ops.random import permutations, uniform

_ALONE = 1 << 14
# Numbers that one thread inverts in less than starting others takes.


def without_replacement(keys: Tensor, population: int, size: int) -> Tensor:
    """Uniform ordered subsets: int64 (n, size), ``size`` different numbers below ``population``.

    Small populations are permuted. Large ones take the first ``size`` different values of an
    endless keyed sequence, so how far the sequence had to be generated changes nothing.
    """
    if population < size:
        raise ValueError(f"cannot draw {size} of {population}")
    if population <= 4 * size:
        return permutations(keys, population)[:, :size]
    length = size + size // 2 + 16
    while True:
        position = torch.arange(length, device=keys.device)
        values = (uniform(keys[:, None], position) * population).to(torch.int64)
        order = torch.argsort(values, dim=1, stable=True)
        ordered = values.gather(1, order)
        repeated = torch.zeros_like(ordered, dtype=torch.bool)
        repeated[:, 1:] = ordered[:, 1:] == ordered[:, :-1]  # stable: not the earliest of its kind
        fresh = torch.ones_like(repeated).scatter_(1, order, ~repeated)
        if bool((fresh.sum(1) >= size).all()):
            front = torch.argsort((~fresh).to(torch.uint8), dim=1, stable=True)[:, :size]
            return values.gather(1, front)
        length *= 2


def normals(*keys: Tensor | int) -> Tensor:
    """Standard normals, float64, one per broadcast key, by inversion.

    SciPy's scalar function on the CPU: the same bits on every device and in every batch.
    """
    u = uniform(*keys)
    return _normals_on_cpu(u).to(u.device)


def chi(freedom: Tensor, *keys: Tensor | int) -> Tensor:
    """Chi variates (lengths of normal vectors), float64, broadcast shape, by inversion."""
    u = uniform(*keys)
    half = torch.broadcast_to(freedom.cpu().to(torch.float64) / 2.0, u.shape)
    gamma = _in_threads(special.gammaincinv, half.numpy(), u.cpu().numpy() + 2.0**-54)
    return torch.from_numpy(np.asarray(np.sqrt(2.0 * gamma))).to(u.device)


def frames(keys: Tensor, size: int, dim: int) -> Tensor:
    """Random orthonormal vectors, the first rows of Haar matrices: float64 (m, size, dim).

    Notes
    -----
    The Q factor of a Gaussian matrix with the signs of R's diagonal moved over (Mezzadri 2007).
    LAPACK factors each matrix by itself on the CPU; on CUDA many small QRs are slow, and the bits
    would differ.
    """
    return _frames_on_cpu(keys, size, dim).to(keys.device)


def gaussian_on_cpu(keys: Tensor, rows: int, columns: int) -> Tensor:
    """Matrices of standard normals for LAPACK: float64 (m, rows, columns) on the CPU.

    The uniforms behind them are hashed where the keys are.
    """
    place = torch.arange(rows * columns, device=keys.device).reshape(rows, columns)
    return _normals_on_cpu(uniform(keys[:, None, None], place))


def _frames_on_cpu(keys: Tensor, size: int, dim: int) -> Tensor:
    q, r = torch.linalg.qr(gaussian_on_cpu(keys, dim, size))
    diagonal = r.diagonal(dim1=-2, dim2=-1)
    return (q * torch.where(diagonal < 0, -1.0, 1.0)[:, None, :]).mT


def _normals_on_cpu(u: Tensor) -> Tensor:
    return torch.from_numpy(_in_threads(special.ndtri, u.cpu().numpy() + 2.0**-54))


def _in_threads(
    function: Callable[..., object], *arrays: NDArray[np.float64]
) -> NDArray[np.float64]:
    """An elementwise function of arrays of one shape, in torch's thread count."""
    out = np.empty(arrays[0].shape)
    flat = [x.reshape(-1) for x in (*arrays, out)]
    threads = max(1, min(torch.get_num_threads(), out.size // _ALONE))
    size = -(-out.size // threads)
    parts = [slice(at, at + size) for at in range(0, out.size, max(1, size))]

    def run(part: slice) -> None:
        *given, into = (x[part] for x in flat)
        function(*given, out=into)

    if threads == 1:
        run(slice(None))
    else:  # SciPy's loops release the interpreter lock
        with ThreadPoolExecutor(threads, thread_name_prefix="psi-engine") as pool:
            list(pool.map(run, parts))
    return out


def rotations_about_ones(keys: Tensor, n: int) -> Tensor:
    """Random orthogonal matrices that keep the vector of ones: float64 (m, n, n).

    Notes
    -----
    Q = 11ᵀ/n + B R Bᵀ with B an orthonormal basis of the complement of 1 (Helmert's) and R Haar
    in O(n − 1).
    """
    size = n - 1
    q = _frames_on_cpu(keys, size, size).mT
    row = torch.arange(1, n, dtype=torch.float64)
    basis = torch.triu(torch.ones(n, size, dtype=torch.float64))
    basis[row.long(), row.long() - 1] = -row
    basis = basis / (row * (row + 1)).sqrt()
    return (basis @ q @ basis.T + 1.0 / n).to(keys.device)


def wishart_rows(keys: Tensor, n: int, dim: int) -> Tensor:
    """N Gaussian vectors in R^dim up to a common rotation: float64 (m, n, min(n, dim)).

    Notes
    -----
    The lower-trapezoidal factor of Bartlett's decomposition: row i holds i independent normals
    and a chi variate with dim − i degrees of freedom, so LLᵀ is distributed as XXᵀ with X
    Gaussian (n, dim), at n²/2 draws instead of n·dim. Rows beyond dim are plain normals.
    """
    width = min(n, dim)
    rows, columns = torch.arange(n, device=keys.device), torch.arange(width, device=keys.device)
    below = rows[:, None] > columns
    out = torch.zeros(len(keys), n, width, dtype=torch.float64, device=keys.device)
    i, j = torch.nonzero(below, as_tuple=True)
    out[:, i, j] = normals(keys[:, None], i * width + j)
    out[:, columns, columns] = chi(dim - columns, keys[:, None], columns * (width + 1))
    return out
