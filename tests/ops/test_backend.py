from __future__ import annotations

import logging

import pytest
import torch

from psi_engine.errors import DeviceError, InputError
from psi_engine.ops import backend as ops_backend
from psi_engine.ops.backend import (
    fall_back,
    in_chunks,
    memory_budget,
    resolve_backend,
    resolve_device,
)


@pytest.fixture
def no_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.mark.usefixtures("no_cuda")
def test_auto_takes_the_cpu_without_a_gpu() -> None:
    assert resolve_device("auto") == torch.device("cpu")
    assert resolve_device(torch.device("cpu")) == torch.device("cpu")
    assert resolve_backend("auto", "cpu") == "numba"


@pytest.mark.usefixtures("no_cuda")
@pytest.mark.parametrize("device", ["cuda", "cuda:3", torch.device("cuda")])
def test_cuda_without_a_gpu_is_refused(device: str) -> None:
    with pytest.raises(DeviceError, match="no CUDA device") as caught:
        resolve_device(device)
    assert caught.value.exit_code == 2
    assert "--device cpu" in str(caught.value)


@pytest.mark.parametrize("device", ["gpu", "cuda:x", "mps", "meta"])
def test_unknown_devices_are_refused(device: str) -> None:
    with pytest.raises(DeviceError, match="device"):
        resolve_device(device)


def test_a_device_beyond_the_last_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert resolve_device("cuda:0") == torch.device("cuda:0")
    with pytest.raises(DeviceError, match="no such CUDA device"):
        resolve_device("cuda:1")


def test_named_backends_are_used_or_refused() -> None:
    assert resolve_backend("torch", "cpu") == "torch"
    assert resolve_backend("numba", torch.zeros(1)) == "numba"
    with pytest.raises(DeviceError, match="data are on cpu"):
        resolve_backend("cuda", "cpu")
    with pytest.raises(InputError, match="unknown backend"):
        resolve_backend("jax", "cpu")  # type: ignore[arg-type]


def test_auto_without_numba_takes_torch_and_says_so_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(ops_backend, "_numba_reason", lambda: "numba is broken in this test")
    with caplog.at_level(logging.INFO, "psi_engine.ops.backend"):
        assert resolve_backend("auto", "cpu") == "torch"
        assert resolve_backend("auto", "cpu") == "torch"
    assert [record.message for record in caplog.records].count(
        "backend 'numba' is not usable (numba is broken in this test); using torch"
    ) == 1
    with pytest.raises(DeviceError, match="numba is broken in this test"):
        resolve_backend("numba", "cpu")


def test_fall_back_only_from_auto() -> None:
    assert fall_back("auto", "the kernel", "a reason of this test") == "torch"
    with pytest.raises(DeviceError, match="the kernel is not usable"):
        fall_back("cuda", "the kernel", "a reason of this test")


def test_memory_budget_is_what_was_asked_or_a_share_of_what_is_free() -> None:
    assert memory_budget("cpu", 12345) == 12345
    free = ops_backend._free_host_memory()
    assert 1 << 24 <= memory_budget("cpu") <= free


def test_memory_respects_the_limit_of_a_container(
    tmp_path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "memory.max").write_text("1000000000\n")
    (tmp_path / "memory.current").write_text("200000000\n")
    monkeypatch.setattr(ops_backend, "_CGROUP", tmp_path)
    assert memory_budget("cpu") <= 200_000_000
    (tmp_path / "memory.max").write_text("max\n")
    assert memory_budget("cpu") > 0


@pytest.mark.parametrize(("budget", "most"), [(0, None), (25, None), (10**6, None), (10**6, 4)])
def test_chunks_cover_every_item_once_within_the_budget(budget: int, most: int | None) -> None:
    parts = in_chunks(lambda part: part, 11, 10, budget, most)
    assert [i for part in parts for i in range(part.start, part.stop)] == list(range(11))
    longest = max(part.stop - part.start for part in parts)
    assert longest <= max(1, budget // 10)
    assert longest <= (most or 11)
    assert in_chunks(lambda part: part, 0, 10, budget, most) == []
