"""Keyed draws the nulls share: subsets, normals, chi variates and random rotations."""

from __future__ import annotations

import numpy as np
import torch
from scipy import special
from torch import Tensor

from psi_engine.ops.random import permutations, uniform


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
    values = special.ndtri(u.cpu().numpy() + 2.0**-54)
    return torch.from_numpy(np.asarray(values)).to(u.device)


def chi(freedom: Tensor, *keys: Tensor | int) -> Tensor:
    """Chi variates (lengths of normal vectors), float64, broadcast shape, by inversion."""
    u = uniform(*keys)
    half = np.broadcast_to(freedom.cpu().numpy() / 2.0, u.shape)
    values = np.sqrt(2.0 * special.gammaincinv(half, u.cpu().numpy() + 2.0**-54))
    return torch.from_numpy(np.asarray(values)).to(u.device)


def frames(keys: Tensor, size: int, dim: int) -> Tensor:
    """Random orthonormal vectors, the first rows of Haar matrices: float64 (m, size, dim).

    Notes
    -----
    The Q factor of a Gaussian matrix with the signs of R's diagonal moved over (Mezzadri 2007).
    LAPACK factors each matrix by itself on the CPU; on CUDA many small QRs are slow, and the bits
    would differ.
    """
    place = torch.arange(dim * size).reshape(dim, size)
    q, r = torch.linalg.qr(normals(keys.cpu()[:, None, None], place))
    diagonal = r.diagonal(dim1=-2, dim2=-1)
    return (q * torch.where(diagonal < 0, -1.0, 1.0)[:, None, :]).mT.to(keys.device)


def rotations_about_ones(keys: Tensor, n: int) -> Tensor:
    """Random orthogonal matrices that keep the vector of ones: float64 (m, n, n).

    Notes
    -----
    Q = 11ᵀ/n + B R Bᵀ with B an orthonormal basis of the complement of 1 (Helmert's) and R Haar
    in O(n − 1).
    """
    size = n - 1
    q = frames(keys.cpu(), size, size).mT
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
