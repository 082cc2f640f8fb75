"""Arrays of any library as tensors that share their memory, and the checks that all must pass."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from psi_engine.errors import InputError

FLOATS = (
    torch.float32,
    torch.float64,
    torch.float16,
    torch.bfloat16,
    torch.float8_e4m3fn,
    torch.float8_e5m2,
    torch.float8_e4m3fnuz,
    torch.float8_e5m2fnuz,
)
"""Floating dtypes that can be scored; what is packed or only a scale cannot."""

_READ = 1 << 22
# Bytes looked at together when a whole array is checked: it may be mapped from a disk.


def as_tensor(name: str, value: Any) -> Tensor:
    """A tensor that shares memory with a torch tensor, NumPy array or DLPack producer.

    Parameters
    ----------
    name : str
        What to call the array in an error.
    value : Tensor, ndarray or object with ``__dlpack__``
        Never modified. Any positive strides are kept; an array that torch cannot view (negative
        or odd strides) is copied.

    Raises
    ------
    InputError
        It is no array, or of a dtype, byte order or layout that torch cannot hold.
    """
    if isinstance(value, np.ma.MaskedArray):
        raise InputError(
            f"{name} is a masked array, whose mask would be lost",
            expected="a plain array",
            fix="pass its .data, and mask= of shape (channels, patches), True where valid",
        )
    if isinstance(value, Tensor):
        tensor = value.detach()
    elif isinstance(value, np.ndarray):
        tensor = _from_numpy(name, value)
    elif hasattr(value, "__dlpack__"):
        tensor = _from_dlpack(name, value)
    else:
        raise InputError(
            f"{name} is not an array",
            got=type(value).__name__,
            expected="a torch tensor, a NumPy array or an object with __dlpack__",
            fix="wrap it in numpy.asarray(...)",
        )
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.device.type == "meta":
        raise InputError(
            f"{name} is not a dense tensor",
            got=f"{tensor.layout} of {tensor.dtype} on {tensor.device}",
            fix="pass tensor.to_dense() (or .dequantize())",
        )
    return tensor


def _from_numpy(name: str, value: np.ndarray) -> Tensor:
    if not value.dtype.isnative:
        raise InputError(
            f"{name} is in foreign byte order",
            got=value.dtype.str,
            expected="the machine's own byte order",
            fix="convert with x.astype(x.dtype.newbyteorder('='))",
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # read-only arrays: never written to
            try:
                return torch.from_numpy(value)
            except ValueError:  # negative or odd strides
                return torch.from_numpy(np.ascontiguousarray(value))
    except TypeError as error:
        raise InputError(
            f"{name} has an unsupported dtype",
            got=value.dtype,
            expected="a real floating, integer or bool dtype of at most 64 bits",
        ) from error


def _from_dlpack(name: str, value: Any) -> Tensor:
    try:
        # before the protocol's second method some producers handed out the capsule alone
        return torch.from_dlpack(
            value if hasattr(value, "__dlpack_device__") else value.__dlpack__()
        )
    except (BufferError, RuntimeError, TypeError, ValueError) as error:
        raise InputError(
            f"{name} cannot be read through DLPack",
            got=f"{type(value).__name__}: {error}",
            fix="pass it as a NumPy array or a torch tensor",
        ) from error


def floats(name: str, value: object) -> Tensor:
    """The tensor of :func:`as_tensor`, refused unless it is floating point."""
    tensor = as_tensor(name, value)
    if tensor.dtype not in FLOATS:
        raise InputError(
            f"{name} must be floating point",
            got=tensor.dtype,
            expected="float16, bfloat16, float32 or float64",
            fix="convert with .to(torch.float32)",
        )
    return tensor


def integers(name: str, value: object, shape: tuple[int, ...]) -> Tensor:
    """The tensor of :func:`as_tensor`, refused unless it holds integers of this shape."""
    tensor = as_tensor(name, value)
    if tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool:
        raise InputError(
            f"{name} must be integers",
            got=tensor.dtype,
            expected="int64",
            fix="convert with .to(torch.int64)",
        )
    return _fitting(name, tensor, shape)


def booleans(name: str, value: object, shape: tuple[int, ...]) -> Tensor:
    """The tensor of :func:`as_tensor`, refused unless it is bool and of this shape."""
    tensor = _fitting(name, as_tensor(name, value), shape)
    if tensor.dtype != torch.bool:
        raise InputError(
            f"{name} has the wrong dtype",
            got=tensor.dtype,
            expected=torch.bool,
            fix="convert with .to(torch.bool)",
        )
    return tensor


def _fitting(name: str, tensor: Tensor, shape: tuple[int, ...]) -> Tensor:
    if tuple(tensor.shape) != shape:
        raise InputError(f"{name} has the wrong shape", got=tuple(tensor.shape), expected=shape)
    return tensor


def row_slices(rows: int, bytes_each: int) -> Iterator[slice]:
    """Consecutive slices of an array's first axis, a few MiB each."""
    step = max(1, _READ // max(1, bytes_each))
    for start in range(0, rows, step):
        yield slice(start, min(start + step, rows))
