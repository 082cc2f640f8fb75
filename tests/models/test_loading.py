"""Models by name and by factory."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from psi_engine.data import Preprocess
from psi_engine.errors import EncoderError, ModelError
from psi_engine.factories import import_factory
from psi_engine.models import check_model, load_model
from tests.models.nets import FACTORY, NETS, SMALL, states_equal


def test_torchvision_without_weights_is_the_same_net_every_time() -> None:
    state = torch.get_rng_state()
    one, two = load_model(SMALL, "none"), load_model(SMALL, "none")
    assert torch.equal(torch.get_rng_state(), state)
    assert states_equal(one.module, two.module)
    assert one.fingerprint == two.fingerprint
    assert not one.module.training
    assert not any(p.requires_grad for p in one.module.parameters())
    assert one.categories is None  # outputs of random weights mean nothing
    assert (one.preprocess.image_size, one.preprocess.resize) == (224, 256)


def test_image_size_replaces_resize_and_crop() -> None:
    preprocess = load_model(SMALL, "none", image_size=96).preprocess
    assert (preprocess.image_size, preprocess.resize) == (96, 96)
    preprocess = load_model(f"{NETS}:build_with_preprocess", image_size=32).preprocess
    assert (preprocess.image_size, preprocess.resize, preprocess.interpolation) == (
        32, 32, "bicubic",
    )  # fmt: skip


def test_factories() -> None:
    plain = load_model(FACTORY)
    assert plain.preprocess == Preprocess(image_size=224, resize=224)
    assert load_model(FACTORY, "none", image_size=40).preprocess.image_size == 40
    assert load_model(FACTORY).fingerprint == plain.fingerprint  # seeded
    given = load_model(f"{NETS}:build_with_preprocess")
    assert given.preprocess.resize == 24


def test_a_factory_in_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "psi_local_net.py").write_text(
        "from torch import nn\ndef make():\n    return nn.Conv2d(3, 2, 1)\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p])
    before = list(sys.path)
    assert isinstance(load_model("psi_local_net:make").module, nn.Conv2d)
    assert sys.path == before
    sys.modules.pop("psi_local_net")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnet5O", r"unknown model 'resnet5O'; expected one of resnet50, "),
        ("timm:resnt18", r"unknown timm model 'resnt18'; expected one of resnet18, "),
        ("timm:resnet18.nope", "unknown timm weights 'resnet18.nope'"),
        (
            "zzzz",
            "unknown model 'zzzz'; expected a torchvision classifier, timm:NAME, open",
        ),
        ("mobilenetv5_base", "expected timm:mobilenetv5_base"),
        ("nowhere.models:make", "no module 'nowhere' for 'nowhere.models:make'"),
        (f"{NETS}:biuld", "has no factory 'biuld'; expected one of build"),
        (f"{NETS}:SMALL", "has no factory 'SMALL'"),
        (f"{NETS}:build_nonsense", "did not return a model; got str, int; expected an nn.Mod"),
    ],
)
def test_unknown_models(name: str, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        load_model(name)


@pytest.mark.parametrize(
    ("name", "weights", "message"),
    [
        ("resnet5O", "none", "expected one of resnet50"),
        ("resnet50", "no.pth", "no weights file no.pth"),
        ("timm:resnt18", "none", "expected one of resnet18"),
        ("open_clip:Vit-B-32", "none", "expected one of ViT-B-32"),
        ("open_clip:ViT-B-32", "no.pt", "no weights file no.pt"),
        (f"{NETS}:biuld", "default", "has no factory 'biuld'"),
    ],
)
def test_models_are_checked_without_being_built(
    monkeypatch: pytest.MonkeyPatch, name: str, weights: str, message: str
) -> None:
    with pytest.raises(ModelError, match=message):
        check_model(name, weights)
    monkeypatch.setattr(nn.Module, "__init__", None)  # nothing can be built now
    for good in ("resnet50", "timm:resnet18", "open_clip:ViT-B-32", f"{NETS}:build"):
        check_model(good, "none")


def test_a_module_that_fails_to_import(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "psi_broken_a.py").write_text("1 / 0\n")
    (tmp_path / "psi_broken_b.py").write_text("import psi_missing_dependency\n")
    with pytest.raises(ModelError, match="fails when it is imported; got ZeroDivisionError"):
        load_model("psi_broken_a:make")
    with pytest.raises(EncoderError, match="cannot be imported; got No module named 'psi_missing"):
        import_factory("psi_broken_b:make", EncoderError, "a model")
