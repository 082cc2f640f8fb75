"""Build a CUDA source with the host's C++ compiler behind ``shim.h``."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from psi_engine.ops import _cuda

HERE = Path(__file__).parent
HOPPER_SHARED = 232_448
"""Bytes of shared memory one block may ask for on sm_90."""
_OUTCOMES = {1: "divergent barrier", 2: "shared memory overrun", 3: "data race"}


def launched(outcome: int) -> None:
    """Fail with the reason when the shim stopped a launch."""
    assert outcome == 0, _OUTCOMES[outcome]


def build(
    kernel: str,
    signature: str,
    call: str,
    defines: dict[str, str],
    folder: Path,
    *,
    watched: bool = False,
):
    """A C function ``run(grid, block, shared_bytes, *signature)`` that launches the kernel.

    Watched, a launch with a data race fails, and takes some ten times as long.
    """
    macros = "".join(f"#define {name} {value}\n" for name, value in defines.items())
    text = (
        f'#include "{HERE / "shim.h"}"\n{macros}#include "{_cuda.kernel_folder() / kernel}.cu"\n'
        f'extern "C" int run(unsigned grid, unsigned block, long bytes, {signature}) {{\n'
        f"    return shim::launch(grid, block, bytes, [=] {{ {kernel}({call}); }});\n}}\n"
    )
    name = "-".join([kernel, *defines.values()]).replace("/", "_").replace(" ", "_")
    wrapper, library = folder / f"{name}.cpp", folder / f"{name}.so"
    wrapper.write_text(text)
    return compiled(host_compiler(), wrapper, library, watched).run


def stand_ins(
    sources: Mapping[str, tuple[str, str]], folders: pytest.TempPathFactory, *, watched: bool
) -> dict[str, Callable[..., Any]]:
    """What to put in the places of ``_cuda.kernel`` and ``_cuda.launch``, by these names.

    ``sources`` has the signature and the call of each kernel. It is built for the CPU once per
    set of macros, and works on tensors of the CPU.
    """
    built: dict[tuple[str, ...], Any] = {}

    def kernel(name: str, defines: dict[str, str], device: torch.device) -> Any:
        key = (name, *defines.values())
        if key not in built:
            folder = folders.mktemp(name)
            built[key] = build(name, *sources[name], defines, folder, watched=watched)
        return built[key]

    def launch(function, grid, block, arguments, shared_bytes, device) -> None:
        as_c = {np.int64: ctypes.c_longlong, np.int32: ctypes.c_int}
        passed = [
            ctypes.c_void_p(x.data_ptr()) if isinstance(x, torch.Tensor) else as_c[type(x)](int(x))
            for x in arguments
        ]
        sizes = ctypes.c_uint(grid), ctypes.c_uint(block), ctypes.c_long(shared_bytes)
        launched(function(*sizes, *passed))

    return {"kernel": kernel, "launch": launch}


def host_compiler() -> str:
    """The machine's C++ compiler, or the test is skipped."""
    compiler = shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        pytest.skip("no C++ compiler (g++ or clang++) to build the kernels for the CPU with")
    return compiler


def compiled(compiler: str, wrapper: Path, library: Path, watched: bool) -> ctypes.CDLL:
    """Compile; ``watched``: every load and store of the kernel is told to races.cpp."""
    command = [compiler, "-std=c++17", "-Wall", "-Wno-unused-function"]
    command += ["-Wno-unknown-pragmas", "-fPIC"]  # unrolling is for nvcc
    watcher = library.parent.parent / "races.o"  # one for all folders of a test session
    if not watcher.exists():
        source = str(HERE / "races.cpp")
        subprocess.run([*command, "-O2", "-c", source, "-o", str(watcher)], check=True)
    if watched:
        command += ["-g", "-fsanitize=thread"]
    compiled_file = str(library.with_suffix(".o"))
    subprocess.run([*command, "-O1", "-c", str(wrapper), "-o", compiled_file], check=True)
    # linked without its runtime: races.cpp is in the place of that
    parts = ["-shared", compiled_file, str(watcher), "-o", str(library)]
    subprocess.run([compiler, *parts], check=True)
    return ctypes.CDLL(str(library))
