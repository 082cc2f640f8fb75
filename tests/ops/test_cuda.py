from __future__ import annotations

import re
import struct
import sys
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch

from psi_engine.errors import DeviceError
from psi_engine.ops import _cuda


def test_every_kernel_compiles_for_every_architecture() -> None:
    pytest.importorskip("cupy", reason="CuPy brings the CUDA compiler; install psi-engine[cuda13]")
    reports = _cuda.compile_kernels()
    names = {path.stem for path in _cuda.kernel_folder().glob("*.cu")}
    assert set(_cuda.VARIANTS) <= names
    assert {(x.name, x.arch) for x in reports} == {
        (name, arch) for name in names for arch in _cuda.ARCHITECTURES
    }
    variants = sum(len(_cuda.VARIANTS.get(name, ({},))) for name in names)
    assert len(reports) == variants * len(_cuda.ARCHITECTURES)
    for report in reports:
        assert report.error is None
        assert 0 < report.registers <= 128
        assert report.spill_bytes == 0


def test_a_kernel_that_does_not_compile_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("cupy", reason="CuPy brings the CUDA compiler; install psi-engine[cuda13]")
    (tmp_path / "broken.cu").write_text('extern "C" __global__ void broken() { undeclared = 1; }')
    monkeypatch.setattr(_cuda, "kernel_folder", lambda: tmp_path)
    (report,) = _cuda.compile_kernels(["sm_90"])
    assert report.registers == 0
    assert "undeclared" in (report.error or "")


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where compiled kernels are kept."""
    pytest.importorskip("cupy", reason="CuPy brings the CUDA compiler; install psi-engine[cuda13]")
    monkeypatch.setenv("CUPY_CACHE_DIR", str(tmp_path / "kept"))
    return tmp_path / "kept"


def test_compiled_once_and_whole(kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = _cuda.compiled_file("silhouette", {"BLOCK": "64"}, 90)
    assert [path] == list(kept.iterdir())
    code = path.read_bytes()
    assert code[:4] == b"\x7fELF"
    (headers,) = struct.unpack_from("<Q", code, 0x20)
    size, count = struct.unpack_from("<HH", code, 0x36)
    assert len(code) == headers + size * count  # the program headers come last
    other = _cuda.compiled_file("silhouette", {"BLOCK": "128"}, 90)
    assert other != path
    monkeypatch.setattr(_cuda, "_compile", lambda *_: pytest.fail("compiled again"))
    assert _cuda.compiled_file("silhouette", {"BLOCK": "64"}, 90) == path


def test_a_device_newer_than_the_compiler_gets_ptx_and_an_older_one_an_error(kept: Path) -> None:
    assert _cuda.compiled_file("silhouette", {}, 999).suffix == ".ptx"
    with pytest.raises(DeviceError, match=r"knows no such device; got compute capability 3\.5"):
        _cuda.compiled_file("silhouette", {}, 35)
    with pytest.raises(DeviceError, match="silhouette does not compile; got NVRTC"):
        _cuda.compiled_file("silhouette", {"BLOCK": "no number"}, 90)
    assert len(list(kept.iterdir())) == 1


@pytest.mark.parametrize("name", [path.stem for path in _cuda.kernel_folder().glob("*.cu")])
def test_subnormal_floats_stay_what_they_are(kept: Path, name: str) -> None:
    text = _cuda.compiled_file(name, {}, 999).read_text()
    assert ".entry" in text
    assert ".ftz" not in text


def test_a_machine_without_cupy_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cupy", None)
    monkeypatch.setitem(sys.modules, "cupy.cuda", None)
    _cuda.cupy_reason.cache_clear()
    try:
        assert "psi-engine[cuda13]" in (_cuda.cupy_reason() or "")
    finally:
        _cuda.cupy_reason.cache_clear()
    assert all("does not load" in (x.error or "") for x in _cuda.compile_kernels())


def test_missing_sources_are_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_cuda, "_PACKAGE", tmp_path / "psi_engine")
    with pytest.raises(DeviceError, match="CUDA sources are missing"):
        _cuda.kernel_folder()
    inside = tmp_path / "psi_engine" / "kernels"
    inside.mkdir(parents=True)
    (inside / "x.cu").write_text("")
    assert _cuda.kernel_folder() == inside


def test_every_kernel_has_a_launcher_and_a_line_in_the_table() -> None:
    folder = _cuda.kernel_folder()
    table = (folder / "README.md").read_text(encoding="utf-8")
    for path in folder.glob("*.cu"):
        assert f"`{path.name}`" in table
        launcher = Path(_cuda.__file__).with_name(f"{path.stem}.py")
        assert "def unsupported_reason(" in launcher.read_text(encoding="utf-8")
        macros = set(re.findall(r"#ifndef (\w+)", _cuda.source(path.stem)))
        assert all(f"`{macro}`" in table for macro in macros)


def test_a_kernel_gets_addresses_on_the_gpu_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_cuda, "_on_torch_stream", lambda device: nullcontext())
    calls = []

    def function(*sizes: object, shared_mem: int) -> None:
        calls.append((*sizes, shared_mem))

    gpu = torch.device("cuda", 0)
    with pytest.raises(DeviceError, match="on the GPU"):
        _cuda.launch(function, 3, 64, [np.int32(1), torch.zeros(2)], 16, gpu)
    assert not calls
    _cuda.launch(function, 3, 64, [np.int32(1)], 16, gpu)
    assert calls == [((3,), (64,), (np.int32(1),), 16)]
