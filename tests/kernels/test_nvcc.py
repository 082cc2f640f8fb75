"""Every CUDA source by itself under plain ``nvcc``: it compiles, and nothing leaves the registers.

NVRTC reads the project's headers put in their places, ``nvcc`` finds them beside the source: the
tests of both keep the two ways alike.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from psi_engine.ops import _cuda

MOST_REGISTERS = 128
"""Per thread; beyond, two blocks of 256 threads no longer share a multiprocessor."""


@pytest.fixture(scope="module")
def nvcc() -> str:
    """The compiler of the development environment, whose version is known, else that on PATH."""
    wheels = find_spec("nvidia")
    for folder in (wheels.submodule_search_locations or ()) if wheels else ():
        for path in sorted(Path(folder).glob("cu*/bin/nvcc")):
            return str(path)
    if found := shutil.which("nvcc"):
        return found
    pytest.skip("no nvcc, neither from the package cuda-toolkit[nvcc] nor on PATH")


def forms() -> list[Any]:
    """Every kernel for Hopper as it stands; its variants and Ampere are the long test."""
    found = []
    for path in sorted(_cuda.kernel_folder().glob("*.cu")):
        for macros in ({}, *filter(None, _cuda.VARIANTS.get(path.stem, ()))):
            for arch in _cuda.ARCHITECTURES:
                marks = [] if arch == "sm_90" and not macros else [pytest.mark.slow]
                name = "-".join([path.stem, *(f"{x}={y}" for x, y in macros.items()), arch])
                found.append(pytest.param(path, macros, arch, id=name, marks=marks))
    return found


def compiled(nvcc: str, path: Path, macros: Mapping[str, str], arch: str, out: Path) -> str:
    """What the assembler tells about a kernel; its machine code is written."""
    command = [nvcc, "-std=c++17", f"-arch={arch}", "-cubin", "-Xptxas", "-v"]
    command += [*(f"-D{x}={y}" for x, y in macros.items()), "-o", str(out), path.name]
    done = subprocess.run(command, cwd=path.parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "warning" not in done.stderr, done.stderr
    return done.stderr


def outside_registers(told: str) -> list[int]:
    """Bytes of stack frames, spill stores and spill loads."""
    found = re.findall(r"(\d+) bytes (?:stack frame|spill stores|spill loads)", told)
    return [int(x) for x in found]


@pytest.mark.parametrize(("path", "macros", "arch"), forms())
def test_compiles_alone_and_stays_in_registers(
    nvcc: str, tmp_path: Path, path: Path, macros: Mapping[str, str], arch: str
) -> None:
    told = compiled(nvcc, path, macros, arch, tmp_path / "out.cubin")
    assert (tmp_path / "out.cubin").read_bytes()[:4] == b"\x7fELF"
    assert re.search(rf"entry function '{path.stem}' for '{arch}'", told), told
    assert outside_registers(told) == [0, 0, 0], told
    (registers,) = re.findall(r"Used (\d+) registers", told)
    assert int(registers) <= MOST_REGISTERS


def test_an_array_that_is_indexed_at_run_time_is_noticed(nvcc: str, tmp_path: Path) -> None:
    source = tmp_path / "loose.cu"
    source.write_text(
        'extern "C" __global__ void loose(int* x) {\n'
        "    int own[32] = {};\n"
        "    for (int i = 0; i < 99; ++i) own[x[i] & 31] += x[i + own[i & 31]];\n"
        "    x[threadIdx.x] = own[x[threadIdx.x] & 31];\n}\n"
    )
    told = compiled(nvcc, source, {}, "sm_90", tmp_path / "out.cubin")
    assert max(outside_registers(told)) > 0
