"""Find, compile and launch the CUDA sources of ``kernels/``.

The sources are compiled by NVRTC when first used, once per device and set of macros. CuPy is
imported inside the functions: nothing here opens a device on import.
"""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from psi_engine.errors import DeviceError, InputError

FORMATS = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}
"""How ``kernels/floats.cuh`` numbers the types of activations."""

ARCHITECTURES = ("sm_80", "sm_90")
"""What :func:`compile_kernels` compiles for: Ampere and Hopper."""

VARIANTS: Mapping[str, tuple[Mapping[str, str], ...]] = {
    "contingency": ({}, {"COUNT_T": "short"}),
    "naming": ({}, {"GAP": "1"}, {"RANK": "0"}, {"GAP": "1", "RANK": "0"}),
    "reservoir": ({}, {"FORMAT": "1"}, {"FORMAT": "2"}),
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

    In one piece: a digest of it is the name under which the compiled kernel is kept.
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
        with cupy.cuda.Device(index) as at:
            path = compiled_file(name, defines, int(at.compute_capability))
            _compiled[key] = cupy.RawModule(path=str(path)).get_function(name)
    return _compiled[key]


def compiled_file(name: str, defines: Mapping[str, str], capability: int) -> Path:
    """Compile a kernel, or find it compiled by an earlier process where CuPy keeps its own.

    Not by CuPy, which adds ``-ftz=true``: subnormal floats would count as 0.

    Parameters
    ----------
    name : str
        Source file.
    defines : mapping of str to str
        Macros.
    capability : int
        Compute capability, such as 90. Beyond what the compiler knows, PTX of its newest is made.

    Returns
    -------
    Path
        A ``.cubin`` or ``.ptx``.

    Raises
    ------
    DeviceError
        The source does not compile, or there is no older architecture that would do.
    """
    from cupy.cuda import nvrtc

    known = [x for x in nvrtc.getSupportedArchs() if x <= capability]
    if not known:
        raise DeviceError(
            "the CUDA compiler knows no such device",
            got=f"compute capability {capability / 10:.1f}",
            expected=f"{min(nvrtc.getSupportedArchs()) / 10:.1f} or more",
        )
    kind = "sm" if max(known) == capability else "compute"
    arch, ending = f"{kind}_{max(known)}", "cubin" if kind == "sm" else "ptx"
    asked = [source(name), *_options(defines, arch), *map(str, nvrtc.getVersion())]
    digest = hashlib.sha256("\n".join(asked).encode()).hexdigest()[:32]
    chosen = os.environ.get("CUPY_CACHE_DIR")
    folder = Path(chosen) if chosen else Path.home() / ".cupy" / "kernel_cache"
    path = folder / f"psi-engine-{name}-{digest}.{ending}"
    if not path.is_file():
        code, log = _compile(name, defines, arch)
        if code is None:
            raise DeviceError(f"the kernel {name} does not compile", got=log)
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder, delete=False) as file:
            file.write(code)
        os.replace(file.name, path)  # whole or not at all, whoever else compiles it
    return path


def _options(defines: Mapping[str, str], arch: str) -> list[str]:
    macros = (f"-D{macro}={value}" for macro, value in sorted(defines.items()))
    return ["-std=c++17", f"-arch={arch}", "--ptxas-options=-v", *macros]


def _compile(name: str, defines: Mapping[str, str], arch: str) -> tuple[bytes | None, str]:
    """Machine code for ``sm_…``, PTX for ``compute_…``, None where it fails; and the log."""
    from cupy.cuda import nvrtc

    program = nvrtc.createProgram(source(name), f"{name}.cu", (), ())
    try:
        nvrtc.compileProgram(program, _options(defines, arch))
        # CuPy leaves out the last byte, a zero: in memory every Python string has one more
        made = nvrtc.getPTX if arch.startswith("compute") else nvrtc.getCUBIN
        return made(program) + b"\0", nvrtc.getProgramLog(program)
    except nvrtc.NVRTCError as error:
        return None, f"{error}: {nvrtc.getProgramLog(program).strip()}"
    finally:
        nvrtc.destroyProgram(program)


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


def check_in_place(kernel: str, **buffers: Any) -> None:
    """Refuse buffers, NamedTuples of tensors, that a kernel would work on wrongly.

    Raises
    ------
    InputError
        A tensor is not contiguous: the kernel gets no strides.
    """
    for name, parts in buffers.items():
        for field, part in zip(parts._fields, parts, strict=True):
            if not part.is_contiguous():
                raise InputError(
                    f"the {kernel} kernel works in place on {name}.{field}: not contiguous",
                    got=f"shape {tuple(part.shape)}, strides {part.stride()}",
                    expected="contiguous tensors",
                    fix="pass what .contiguous() gives",
                )


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
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # NVRTC lets go of the interpreter's lock
        return list(pool.map(lambda one: compile_one(*one), wanted))


def _named(macros: Mapping[str, str]) -> str:
    return " ".join(f"{macro}={value}" for macro, value in macros.items())


def _compiler() -> Callable[[str, Mapping[str, str], str], KernelReport]:
    from cupy.cuda import nvrtc

    nvrtc.getVersion()  # loads the library

    def compile_one(name: str, macros: Mapping[str, str], arch: str) -> KernelReport:
        code, log = _compile(name, macros, arch)
        if code is None:
            return KernelReport(name, _named(macros), arch, 0, 0, 0, log)
        spilled = sum(_numbers(r"(\d+) bytes spill (?:stores|loads)", log))
        registers = max(_numbers(r"Used (\d+) registers", log), default=0)
        shared = max(_numbers(r"(\d+) bytes smem", log), default=0)
        return KernelReport(name, _named(macros), arch, registers, shared, spilled, None)

    return compile_one


def _numbers(pattern: str, log: str) -> list[int]:
    return [int(found) for found in re.findall(pattern, log)]
