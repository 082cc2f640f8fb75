from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from psi_engine.encoders import check_encoder, load_encoder
from psi_engine.errors import EncoderError
from tests.encoders.tiny import (
    register,
)


@pytest.mark.parametrize("work", [check_encoder, load_encoder])
@pytest.mark.parametrize("switch", [False, True])
def test_no_network_is_said_at_once_with_the_offline_way(
    monkeypatch: pytest.MonkeyPatch, work: Any, switch: bool
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", switch)
    start = time.monotonic()
    with pytest.raises(EncoderError, match="cannot be downloaded") as caught:
        work("open_clip:ViT-B-32")
    assert time.monotonic() - start < 3
    message = str(caught.value)
    assert ("HF_HUB_OFFLINE is set" if switch else "127.0.0.1:9") in message
    assert "timm/vit_base_patch32_clip_224.openai (open_clip_model.safetensors)" in message
    assert "--encoder-weights FILE" in message


@pytest.mark.parametrize(
    "spec", ["classifier:resnet18", "timm:resnet18", "classifier:timm:resnet18"]
)
@pytest.mark.parametrize("work", [check_encoder, load_encoder])
def test_no_network_for_a_classifier(monkeypatch: pytest.MonkeyPatch, spec: str, work: Any) -> None:
    monkeypatch.setattr("psi_engine.models.zoo.unreachable_reason", lambda url: f"{url}: down")
    with pytest.raises(
        EncoderError, match=r"cannot be downloaded; got .*: down.*--encoder-weights F"
    ):
        work(spec)


@pytest.mark.parametrize(
    ("spec", "weights", "message"),
    [
        ("resnet18", None, "unknown encoder 'resnet18'; expected open_clip:.*classifier:resnet18"),
        ("open_clip:", None, "unknown encoder 'open_clip:'"),
        (":x", None, "unknown encoder ':x'"),
        ("open_clip:ViT-B-23", None, "has no model 'ViT-B-23'; expected one of ViT-B-32"),
        ("open_clip:ViT-B-32", "opnai", "no weights 'opnai' for ViT-B-32; expected one of openai"),
        ("open_clip:ViT-B-32", "no/such.pt", "no weights file no/such.pt.*check the path"),
        ("open_clip:ViT-B-32", "openai=no.pt", "no weights file no.pt"),
        ("open_clip:ViT-B-16-SigLIP", None, "package transformers; got not installed"),
        ("classifier:resnet81", None, "unknown model 'resnet81'; expected one of resnet"),
        ("classifier:resnet18", "no.pth", "no weights file no.pth"),
        ("timm:resnet_18", None, "unknown timm model 'resnet_18'"),
        ("no.such.package:factory", None, "no module 'no'"),
        ("json:no_such_function", None, "json has no factory 'no_such_function'"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("work", [check_encoder, load_encoder])
def test_a_mistake_is_named_before_any_work(
    monkeypatch: pytest.MonkeyPatch, spec: str, weights: str | None, message: str, work: Any
) -> None:
    # whether transformers is installed or not
    monkeypatch.setattr("psi_engine.models.clip_weights.find_spec", lambda name: None)
    with pytest.raises(EncoderError, match=message):
        work(spec, weights)


def test_weights_of_another_architecture_are_refused(tmp_path: Path, clip_file: str) -> None:
    with pytest.raises(EncoderError, match="does not hold the weights of open_clip's RN50"):
        load_encoder("open_clip:RN50", f"openai={clip_file}")
    with pytest.raises(EncoderError, match="weights of another architecture than resnet18"):
        load_encoder("classifier:resnet18", clip_file)
    (tmp_path / "text.pt").write_text("not weights")
    with pytest.raises(EncoderError, match="text.pt does not hold the weights"):
        load_encoder("open_clip:tiny", str(tmp_path / "text.pt"))


def test_an_architecture_without_one_obvious_tag_asks_for_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(EncoderError, match="tiny has no default weights; expected a file"):
        load_encoder("open_clip:tiny")
    register(monkeypatch, one={}, two={})
    with pytest.raises(EncoderError, match="no default weights; expected one of one, two"):
        load_encoder("open_clip:tiny")
