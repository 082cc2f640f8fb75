"""A tiny CLIP that needs no download, and caches that stay inside the test's folder."""

from __future__ import annotations

from pathlib import Path

import open_clip
import pytest
import torch
from safetensors.torch import save_file

from tests.encoders.tiny import CLOSED, CONFIG, clip_state


@pytest.fixture(autouse=True)
def tiny_clip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    configs = {**open_clip.factory._MODEL_CONFIGS, "tiny": CONFIG}
    monkeypatch.setattr(open_clip.factory, "_MODEL_CONFIGS", configs)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path / "torch"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", CLOSED)


@pytest.fixture
def clip_file(tmp_path: Path) -> str:
    file = tmp_path / "weights.safetensors"
    save_file(clip_state(), file)
    return str(file)
