"""Counter-based randomness: every draw is a pure function of integer keys.

A generator with state would tie a channel's numbers to the order of the work. Here the draw for
(seed, channel, replicate, position) is a hash of those integers, so chunk sizes, channel order,
shards and resumption never change a result, and CPU and CUDA agree bit for bit.

The mixer is the 64-bit finaliser of SplitMix64 (Steele, Lea, Flood, "Fast splittable
pseudorandom number generators", OOPSLA 2014). Torch has no unsigned 64-bit arithmetic; int64
wraps the same way under addition and multiplication, and logical shifts are arithmetic shifts
with the sign bits masked off.
"""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

_GOLDEN = -7046029254386353131  # 0x9E3779B97F4A7C15 as int64
_MIX_1 = -4658895280553007687  # 0xBF58476D1CE4E5B9
_MIX_2 = -7723592293110705685  # 0x94D049BB133111EB
_MASK = (1 << 64) - 1


def _logical_shift(x: Tensor, bits: int) -> Tensor:
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _finalise(x: Tensor) -> Tensor:
    x = (x ^ _logical_shift(x, 30)) * _MIX_1
    x = (x ^ _logical_shift(x, 27)) * _MIX_2
    return x ^ _logical_shift(x, 31)


def hash_keys(*keys: Tensor | int, device: torch.device | str | None = None) -> Tensor:
    """Hash broadcast integer keys into 64 uniform bits.

    Parameters
    ----------
    *keys : Tensor (int64, any broadcastable shapes) or int
        The coordinates of the draw, in a fixed order: ``hash_keys(a, b) != hash_keys(b, a)``.
    device : torch.device, optional
        Where to put the result when every key is a plain int.

    Returns
    -------
    Tensor
        int64, the broadcast shape of the keys, all 64 bits uniform.
    """
    state: Tensor | None = None
    for key in keys:
        if not isinstance(key, Tensor):
            where = device if state is None else state.device
            key = torch.tensor(_as_int64(key), dtype=torch.int64, device=where)
        state = _finalise(key + _GOLDEN) if state is None else _finalise((state ^ key) + _GOLDEN)
    if state is None:
        raise TypeError("hash_keys needs at least one key")
    return state


def uniform(*keys: Tensor | int, device: torch.device | str | None = None) -> Tensor:
    """Uniform float64 in [0, 1) with 53 random bits, one per broadcast key."""
    bits = _logical_shift(hash_keys(*keys, device=device), 11)
    return bits.to(torch.float64) * 2.0**-53


def permutations(key: Tensor, n: int) -> Tensor:
    """Uniform random permutations of ``range(n)``, one per key.

    Parameters
    ----------
    key : Tensor, int64, any shape (...)
    n : int
        Length of each permutation.

    Returns
    -------
    Tensor
        int64 (..., n). The stable sort of n independent 64-bit hashes; a tie between two of
        them has probability below n²·2⁻⁶⁵ and is broken by position.
    """
    position = torch.arange(n, device=key.device)
    return torch.argsort(hash_keys(key.unsqueeze(-1), position), dim=-1, stable=True)


def string_key(text: str) -> int:
    """A stable int64 key of a string (a layer's name, a stage), the same on every machine."""
    return int.from_bytes(
        hashlib.blake2b(text.encode(), digest_size=8).digest(), "little", signed=True
    )


def _as_int64(value: int) -> int:
    value &= _MASK
    return value - (1 << 64) if value >> 63 else value
