"""Which device and which backend an operation runs on, and how much memory it may use.

This file alone asks whether CuPy and a GPU are there. ``auto`` falls back and logs the reason
once; a backend or device named explicitly is used or refused, never replaced.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Literal, TypeVar, get_args

import torch
from torch import Tensor

from psi_engine.config import Backend
from psi_engine.errors import DeviceError, InputError
from psi_engine.ops._cuda import cupy_reason

Resolved = Literal["torch", "numba", "cuda"]
T = TypeVar("T")

_log = logging.getLogger(__name__)
_DEFAULT_MEMORY = 4 << 30
_CGROUP = Path("/sys/fs/cgroup")
_MEMINFO = Path("/proc/meminfo")


def resolve_device(device: str | torch.device = "auto") -> torch.device:
    """Turn a device name into a device that exists.

    Parameters
    ----------
    device : str or torch.device
        ``auto`` takes CUDA when there is one, else the CPU.

    Returns
    -------
    torch.device

    Raises
    ------
    DeviceError
        The name is unknown, or the device is not there.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        resolved = torch.device(device)
    except RuntimeError as error:
        raise DeviceError(
            "unknown device", got=repr(device), expected="auto, cpu, cuda or cuda:INDEX"
        ) from error
    if resolved.type == "cuda":
        if not torch.cuda.is_available():
            raise DeviceError(
                "no CUDA device is usable",
                got=f"device {device!s}",
                fix="use --device cpu (or auto), or run `psi-engine doctor` to see what is missing",
            )
        if resolved.index is not None and resolved.index >= torch.cuda.device_count():
            raise DeviceError(
                "no such CUDA device", got=device, expected=f"below {torch.cuda.device_count()}"
            )
    elif resolved.type != "cpu":
        raise DeviceError("unsupported device", got=repr(device), expected="cpu or cuda")
    return resolved


def resolve_backend(
    backend: Backend = "auto", device: str | torch.device | Tensor = "auto"
) -> Resolved:
    """Choose how operations run on a device.

    ``auto`` is ``numba`` on the CPU (``torch`` where numba does not import) and ``cuda`` on a GPU
    (``torch`` where CuPy is not usable). ``cuda`` means: the project's kernels for the
    operations that have one, torch on the same device for the others.

    Parameters
    ----------
    backend : {"auto", "torch", "numba", "cuda"}
    device : str, torch.device or Tensor
        Where the data are.

    Raises
    ------
    DeviceError
        A backend asked for by name cannot run here.
    """
    if backend not in get_args(Backend):
        raise InputError(
            "unknown backend", got=repr(backend), expected="one of " + ", ".join(get_args(Backend))
        )
    where = device.device if isinstance(device, Tensor) else resolve_device(device)
    if backend == "torch":
        return "torch"
    wanted: Resolved = (
        backend if backend != "auto" else ("cuda" if where.type == "cuda" else "numba")
    )
    reason = cuda_reason(where) if wanted == "cuda" else numba_reason(where)
    if reason is None:
        return wanted
    return fall_back(backend, f"backend {wanted!r}", reason)


def fall_back(backend: Backend, what: str, reason: str) -> Literal["torch"]:
    """Take torch instead of something that is not usable, if ``auto`` was asked for.

    Parameters
    ----------
    backend : Backend
        What the caller asked for.
    what, reason : str
        What is not usable, and why; logged once each.

    Raises
    ------
    DeviceError
        The backend was named explicitly.
    """
    if backend != "auto":
        raise DeviceError(f"{what} is not usable", got=reason, fix="use backend 'auto' or 'torch'")
    _log_once(f"{what} is not usable ({reason}); using torch")
    return "torch"


def cuda_reason(device: torch.device) -> str | None:
    """Why the CUDA kernels cannot run on a device, or None when they can."""
    if device.type != "cuda":
        return f"the data are on {device.type}, the kernels need a CUDA device"
    if not torch.cuda.is_available():
        return "torch sees no CUDA device"
    return cupy_reason()


def numba_reason(device: torch.device) -> str | None:
    """Why the numba backend cannot run on a device, or None when it can."""
    if device.type != "cpu":
        return f"the data are on {device.type}, the numba backend runs on the CPU"
    return _numba_reason()


def memory_budget(device: str | torch.device, requested: int | None = None) -> int:
    """Bytes an operation may use for temporaries.

    Parameters
    ----------
    device : str or torch.device
    requested : int, optional
        Taken as it is; None = a quarter of what the device has free.
    """
    if requested is not None:
        return requested
    where = resolve_device(device)
    if where.type == "cuda":
        free, _ = torch.cuda.mem_get_info(where)
        cached = torch.cuda.memory_reserved(where) - torch.cuda.memory_allocated(where)
        return max(1 << 24, (free + cached) // 4)
    return max(1 << 24, _free_host_memory() // 4)


def in_chunks(
    run: Callable[[slice], T], items: int, bytes_each: int, budget: int, most: int | None = None
) -> list[T]:
    """Run an operation over slices of its items that fit a budget of bytes.

    Parameters
    ----------
    run : callable
        Called with consecutive slices.
    items, bytes_each : int
        How many items there are and what one of them needs.
    budget : int
        Bytes for one slice; a slice never holds less than one item.
    most : int, optional
        Upper bound of a slice's length.
    """
    size = max(1, min(items, budget // max(1, bytes_each)))
    if most is not None:
        size = min(size, most)
    return [run(slice(at, min(at + size, items))) for at in range(0, items, size)]


def _free_host_memory() -> int:
    free = _DEFAULT_MEMORY
    if _MEMINFO.is_file():
        for line in _MEMINFO.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                free = int(line.split()[1]) * 1024
    elif "SC_AVPHYS_PAGES" in os.sysconf_names:
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limit, used = _CGROUP / "memory.max", _CGROUP / "memory.current"
    if limit.is_file() and used.is_file():
        text = limit.read_text().strip()
        if text.isdigit():
            free = min(free, max(0, int(text) - int(used.read_text())))
    return free


@cache
def _log_once(message: str) -> None:
    _log.info(message)


@cache
def _numba_reason() -> str | None:
    try:
        import psi_engine.ops._numba  # noqa: F401
    except ImportError as error:
        return f"numba does not import ({error})"
    return None
