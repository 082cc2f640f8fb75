"""The doctor on a machine with neither GPU nor network, and on one where things are there."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from psi_engine import doctor
from psi_engine.cli import app
from psi_engine.ops._cuda import kernel_folder


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Make a machine without network, caches and GPU."""
    monkeypatch.setattr(doctor, "unreachable_reason", lambda url, timeout: f"{url}: no route")
    for name in ("cached_weights", "cached_clip_weights"):
        monkeypatch.setattr(doctor, name, lambda *names: None)
    monkeypatch.setattr(doctor, "cached_tiny_imagenet", lambda: None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


def lines() -> dict[str, doctor.Check]:
    return {check["what"]: check for check in doctor.examine()}


@pytest.mark.usefixtures("offline")
def test_machine_without_gpu_and_network_is_told_what_works_and_what_mends() -> None:
    found = lines()
    assert found["packages"]["state"] == "ok"
    assert "torch 2" in found["packages"]["detail"]
    assert found["demo"]["state"] == "ok"
    assert found["disk"]["state"] == "ok"
    assert found["GPU"]["state"] == "missing"
    assert "everything runs on the CPU" in found["GPU"]["detail"]
    for what, way in (
        ("weights of resnet50", "--weights FILE"),
        ("open_clip ViT-B-32, openai", "--encoder-weights FILE"),
        ("Tiny-ImageNet", "--data PATH"),
    ):
        assert found[what]["state"] == "missing"
        assert way in found[what]["mend"]
    for what in ("torchvision weights", "open_clip and timm weights", "Tiny-ImageNet"):
        assert "no route" in found[f"network for {what}"]["detail"]
    for check in found.values():
        assert (check["mend"] == "") == (check["state"] == "ok"), check


@pytest.mark.usefixtures("offline")
def test_kernels_compile_without_a_gpu() -> None:
    kernels = [check for what, check in lines().items() if what.startswith("kernel ")]
    assert kernels
    for check in kernels:
        assert check["state"] == "ok", check
        assert "sm_" in check["detail"]
        assert "0 B spilled" in check["detail"]
    for path in kernel_folder().glob("*.cu"):
        (plain,) = [check for check in kernels if check["what"] == f"kernel {path.stem}"]
        (shared,) = re.findall(r"(\d+) B shared a block at the paper's sizes", plain["detail"])
        assert int(shared) <= 227 << 10
        assert (int(shared) == 0) == (path.stem == "reservoir")


def test_what_is_there_is_named(
    offline: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(doctor, "cached_tiny_imagenet", lambda: tmp_path)
    monkeypatch.setattr(doctor, "unreachable_reason", lambda url, timeout: None)
    found = lines()
    assert found["Tiny-ImageNet"] == {
        "what": "Tiny-ImageNet",
        "state": "ok",
        "detail": str(tmp_path),
        "mend": "",
    }
    assert found["network for Tiny-ImageNet"]["state"] == "ok"


@pytest.mark.usefixtures("offline")
def test_command_speaks_to_people_and_machines() -> None:
    runner = CliRunner()
    shown = runner.invoke(app, ["doctor"])
    assert shown.exit_code == 0
    assert "missing" in shown.stdout
    checks = json.loads(runner.invoke(app, ["doctor", "--json"]).stdout)
    assert {"what", "state", "detail", "mend"} == set(checks[0])
