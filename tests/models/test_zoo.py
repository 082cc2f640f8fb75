"""Models of torchvision and timm: preprocessing, downloads, caches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torchvision import models as zoo

from psi_engine.data import Preprocess
from psi_engine.errors import ModelError
from psi_engine.models import (
    cached_weights,
    load_model,
)
from tests.models.nets import SMALL, TIMM, states_equal


def test_preprocess_equals_torchvisions() -> None:
    for name in ("resnet50", "efficientnet_b0", "vit_b_16"):
        transforms = zoo.get_model_weights(name).DEFAULT.transforms()
        pixels = np.random.default_rng(0).integers(0, 256, (70, 90, 3), dtype=np.uint8)
        image = Image.fromarray(pixels)
        preprocess = load_model_preprocess(name)
        assert torch.equal(preprocess.normalise(preprocess.view(image)[None])[0], transforms(image))


def load_model_preprocess(name: str) -> Preprocess:
    """The preprocess alone: on the meta device a large net is built in no time."""
    from psi_engine.models.zoo import build_torchvision

    with torch.device("meta"):
        return build_torchvision(name, pretrained=False).preprocess


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No network and an empty cache; returns torchvision's folder of checkpoints."""
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path))
    monkeypatch.setattr(
        "psi_engine.models.zoo.unreachable_reason", lambda url: "host:443: no route"
    )
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_, **__: None)
    (tmp_path / "checkpoints").mkdir()
    return tmp_path / "checkpoints"


@pytest.mark.parametrize("name", [SMALL, TIMM])
def test_default_weights_without_a_network(name: str, offline: Path) -> None:
    with pytest.raises(
        ModelError,
        match=rf"the weights of {name} cannot be downloaded; got host:443: no route; fetch .*"
        "and give the file with --weights FILE",
    ):
        load_model(name)


def test_hub_offline_is_respected(offline: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError, match="got HF_HUB_OFFLINE is set"):
        load_model(TIMM)


def test_a_timm_model_without_pretrained_weights(offline: Path) -> None:
    import timm

    name = next(n for n in timm.list_models("resnet50*") if not timm.is_model_pretrained(n))
    with pytest.raises(ModelError, match=f"no pretrained weights for '{name}'; use --weights none"):
        load_model(f"timm:{name}")


def test_cached_weights_need_no_network(offline: Path) -> None:
    assert cached_weights(SMALL) is None
    net = zoo.shufflenet_v2_x0_5(weights=None)
    url = zoo.get_model_weights(SMALL).DEFAULT.url
    torch.save(net.state_dict(), offline / url.rsplit("/", 1)[1])
    assert cached_weights(SMALL) == offline / url.rsplit("/", 1)[1]
    assert states_equal(load_model(SMALL).module, net)


def test_cached_timm_weights_need_no_network(
    offline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import timm

    net = timm.create_model(TIMM.removeprefix("timm:"))
    save_file(net.state_dict(), tmp_path / "model.safetensors")

    def cached(repository: str, file: str, revision: str | None = None) -> str | None:
        assert repository == "timm/mobilenetv3_small_050.lamb_in1k"
        return str(tmp_path / file) if file == "model.safetensors" else None

    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", cached)
    loaded = load_model(TIMM)
    assert states_equal(loaded.module, net)
    assert loaded.categories is not None
    assert loaded.categories[1] == "goldfish"


@pytest.mark.parametrize("name", ["mobilenetv3_small_050.lamb_in1k", "test_vit.r160_in1k"])
def test_preprocess_equals_timms(name: str) -> None:
    import timm
    from timm.data import create_transform, resolve_data_config

    loaded = load_model(f"timm:{name}", "none")
    config = resolve_data_config({}, model=timm.create_model(name))
    pixels = np.random.default_rng(0).integers(0, 256, (70, 90, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    ours = loaded.preprocess.normalise(loaded.preprocess.view(image)[None])[0]
    assert torch.equal(ours, create_transform(**config)(image))


def test_squashed_preprocess_equals_timms() -> None:
    from timm.data import create_transform

    from psi_engine.models.zoo import _timm_preprocess

    config: dict[str, Any] = {
        "input_size": (3, 32, 32), "interpolation": "bicubic", "crop_pct": 0.9,
        "crop_mode": "squash", "mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5),
    }  # fmt: skip
    pixels = np.random.default_rng(0).integers(0, 256, (70, 90, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    preprocess = _timm_preprocess("x", config)
    ours = preprocess.normalise(preprocess.view(image)[None])[0]
    assert torch.equal(ours, create_transform(**config)(image))
    with pytest.raises(ModelError, match="takes images in a way that is not supported; got input"):
        _timm_preprocess("x", {**config, "input_size": (3, 32, 48)})
