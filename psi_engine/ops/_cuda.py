"""Find, compile and launch the CUDA sources of ``kernels/``.

The sources are compiled by NVRTC when first used, once per device and set of macros. CuPy is
imported inside the functions: nothing here opens a device on import.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from psi_engine.errors import DeviceError

ARCHITECTURES = ("sm_80", "sm_90")
"""What :func:`compile_kernels` compiles for: Ampere and Hopper."""

VARIANTS: Mapping[str, tuple[Mapping[str, str], ...]] = {
    "contingency": ({}, {"COUNT_T": "short"}),
    "naming": ({}, {"GAP": "1"}, {"RANK": "0"}, {"GAP": "1", "RANK": "0"}),
    "survey": (
        {},
        {"WIDTH": "1"},
        {"ROWS": "1", "WIDTH": "1"},
        {"FORMAT": "1", "WIDTH": "4"},
        {"FORMAT": "2", "WIDTH": "4"},
    ),
    "separability": ({}, {"TILED": "0"}, {"ROTATED": "1"}, {"POOLED": "1"}),
}
"""Macros that change what is compiled; a kernel that is not named here has one form."""

_PACKAGE = Path(__file__).parents[1]
_DEFAULT_SHARED = 48 << 10
_compiled: dict[tuple[int, str, tuple[tuple[str, str], ...]], Any] = {}


class KernelReport(NamedTuple):
    """How one kernel compiles for one architecture.

    variant : the macros that differ from their defaults, or nothing. registers : per thread.
    shared_bytes : static, per block; dynamic shared memory depends on
    the launch. spill_bytes : stores and loads per thread. error : what stopped the compiler, or
    None; the numbers are 0 then.
    """

    name: str
    variant: str
    arch: str
    registers: int
    shared_bytes: int
    spill_bytes: int
    error: str | None


@cache
def cupy_reason() -> str | None:
    """Why CuPy cannot launch kernels here, or None when it can."""
    try:
        import cupy
    except ImportError as error:
        return f"CuPy does not import ({error}); install psi-engine[cuda13] or psi-engine[cuda12]"
    try:
        if cupy.cuda.runtime.getDeviceCount() < 1:
            return "CuPy sees no CUDA device"
    except cupy.cuda.runtime.CUDARuntimeError as error:
        return f"CuPy cannot use a device ({error})"
    return None


def kernel_folder() -> Path:
    """Find the folder of the CUDA sources: inside an installed package, or beside a checkout's."""
    for folder in (_PACKAGE / "kernels", _PACKAGE.parent / "kernels"):
        if any(folder.glob("*.cu")):
            return folder
    raise DeviceError(
        "the CUDA sources are missing",
        got=f"no *.cu in {_PACKAGE / 'kernels'} or {_PACKAGE.parent / 'kernels'}",
        fix="reinstall psi-engine",
    )


def source(name: str) -> str:
    """Read the text of a kernel's source, the project's headers in their places.

    In one piece, because CuPy's cache of compiled kernels knows nothing of files included.
    """
    folder = kernel_folder()
    text = (folder / f"{name}.cu").read_text(encoding="utf-8")

    def header(found: re.Match[str]) -> str:
        return (folder / found[1]).read_text(encoding="utf-8").replace("#pragma once\n", "")

    return re.sub(r'^#include "(\w+\.cuh)"$', header, text, flags=re.MULTILINE)


def kernel(name: str, defines: Mapping[str, str], device: torch.device) -> Any:
    """Compile a kernel for a device, or return it from an earlier call.

    Parameters
    ----------
    name : str
        Source file and entry point.
    defines : mapping of str to str
        Macros.

    Returns
    -------
    cupy.RawKernel
    """
    import cupy

    index = _index(device)
    key = (index, name, tuple(sorted(defines.items())))
    if key not in _compiled:
        options = ("-std=c++17", *(f"-D{macro}={value}" for macro, value in key[2]))
        with cupy.cuda.Device(index):
            module = cupy.RawModule(code=source(name), options=options, backend="nvrtc")
            _compiled[key] = module.get_function(name)
    return _compiled[key]


def launch(
    function: Any,
    grid: int,
    block: int,
    arguments: Sequence[object],
    shared_bytes: int,
    device: torch.device,
) -> None:
    """Launch a kernel on torch's current stream.

    Parameters
    ----------
    function : cupy.RawKernel
    grid, block : int
        Blocks, threads per block.
    arguments : sequence
        Tensors on the device, of which the kernel gets the address, and NumPy scalars.
    shared_bytes : int
        Dynamic shared memory per block.

    Raises
    ------
    DeviceError
        A tensor is not on a GPU: its address would mean nothing there.
    """
    passed = [_address(x) if isinstance(x, Tensor) else x for x in arguments]
    with _on_torch_stream(device):
        if shared_bytes > _DEFAULT_SHARED:
            function.max_dynamic_shared_size_bytes = shared_bytes
        function((grid,), (block,), tuple(passed), shared_mem=shared_bytes)


def _address(x: Tensor) -> np.uintp:
    """Where a tensor begins: cheaper than a view of CuPy's, which has no bfloat16 either."""
    if not x.is_cuda:
        raise DeviceError("a kernel needs its tensors on the GPU", got=x.device)
    return np.uintp(x.data_ptr())


@contextmanager
def _on_torch_stream(device: torch.device) -> Iterator[None]:
    import cupy

    stream = torch.cuda.current_stream(device)
    with cupy.cuda.Device(stream.device_index), cupy.cuda.Stream.from_external(stream):
        yield


def shared_memory_limit(device: torch.device) -> int:
    """Most dynamic shared memory in bytes one block may ask for on a device."""
    return _attribute("MaxSharedMemoryPerBlockOptin", _index(device))


def processors(device: torch.device) -> int:
    """Multiprocessors of a device."""
    return _attribute("MultiProcessorCount", _index(device))


def _index(device: torch.device) -> int:
    return torch.cuda.current_device() if device.index is None else device.index


@cache
def _attribute(name: str, index: int) -> int:
    import cupy  # asks the driver for all there are, each time

    return int(cupy.cuda.Device(index).attributes[name])


def compile_kernels(architectures: Sequence[str] = ARCHITECTURES) -> list[KernelReport]:
    """Compile every kernel in all its :data:`VARIANTS`; needs NVRTC, but no GPU.

    Parameters
    ----------
    architectures : sequence of str
        Such as ``sm_90``.

    Returns
    -------
    list of KernelReport
        One per kernel, variant and architecture, in that order.
    """
    wanted = [
        (path.stem, macros, arch)
        for path in sorted(kernel_folder().glob("*.cu"))
        for macros in VARIANTS.get(path.stem, ({},))
        for arch in architectures
    ]
    try:
        compile_one = _compiler()
    except (ImportError, RuntimeError) as error:  # CuPy is absent, or finds no NVRTC
        reason = f"the CUDA compiler library does not load ({error})"
        return [KernelReport(x, _named(y), arch, 0, 0, 0, reason) for x, y, arch in wanted]
    return [compile_one(*one) for one in wanted]


def _named(macros: Mapping[str, str]) -> str:
    return " ".join(f"{macro}={value}" for macro, value in macros.items())


def _compiler() -> Callable[[str, Mapping[str, str], str], KernelReport]:
    from cupy.cuda import nvrtc

    nvrtc.getVersion()  # loads the library

    def compile_one(name: str, macros: Mapping[str, str], arch: str) -> KernelReport:
        variant = _named(macros)
        program = nvrtc.createProgram(source(name), f"{name}.cu", (), ())
        defines = [f"-D{macro}={value}" for macro, value in macros.items()]
        options = ["-std=c++17", f"-arch={arch}", "--ptxas-options=-v", *defines]
        try:
            nvrtc.compileProgram(program, options)
            log = nvrtc.getProgramLog(program)
        except nvrtc.NVRTCError as error:
            log = nvrtc.getProgramLog(program)
            return KernelReport(name, variant, arch, 0, 0, 0, f"{error}: {log.strip()}")
        finally:
            nvrtc.destroyProgram(program)
        spilled = sum(_numbers(r"(\d+) bytes spill (?:stores|loads)", log))
        registers = max(_numbers(r"Used (\d+) registers", log), default=0)
        shared = max(_numbers(r"(\d+) bytes smem", log), default=0)
        return KernelReport(name, variant, arch, registers, shared, spilled, None)

    return compile_one


def _numbers(pattern: str, log: str) -> list[int]:
    return [int(found) for found in re.findall(pattern, log)]
