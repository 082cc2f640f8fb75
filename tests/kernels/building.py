"""Build a CUDA source with the host's C++ compiler behind ``shim.h``."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from pathlib import Path

import pytest

from psi_engine.ops import _cuda

HERE = Path(__file__).parent
HOPPER_SHARED = 232_448
"""Bytes of shared memory one block may ask for on sm_90."""
_OUTCOMES = {1: "divergent barrier", 2: "shared memory overrun"}


def launched(outcome: int) -> None:
    """Fail with the reason when the shim stopped a launch."""
    assert outcome == 0, _OUTCOMES[outcome]


def build(kernel: str, signature: str, call: str, defines: dict[str, str], folder: Path):
    """A C function ``run(grid, block, shared_bytes, *signature)`` that launches the kernel."""
    compiler = shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        pytest.skip("no C++ compiler (g++ or clang++) to build the kernels for the CPU with")
    macros = "".join(f"#define {name} {value}\n" for name, value in defines.items())
    text = (
        f'#include "{HERE / "shim.h"}"\n{macros}#include "{_cuda.kernel_folder() / kernel}.cu"\n'
        f'extern "C" int run(unsigned grid, unsigned block, long bytes, {signature}) {{\n'
        f"    return shim::launch(grid, block, bytes, [=] {{ {kernel}({call}); }});\n}}\n"
    )
    name = "-".join([kernel, *defines.values()]).replace("/", "_").replace(" ", "_")
    wrapper, library = folder / f"{name}.cpp", folder / f"{name}.so"
    wrapper.write_text(text)
    command = [compiler, "-std=c++17", "-O1", "-Wall", "-Wno-unused-function", "-shared", "-fPIC"]
    subprocess.run([*command, str(wrapper), "-o", str(library)], check=True)
    return ctypes.CDLL(str(library)).run
