"""open_clip's visual towers as models under study, against open_clip alone."""

from __future__ import annotations

import open_clip
import pytest
import torch

from psi_engine.errors import ModelError
from psi_engine.models import activation_shapes, choose_layers, load_model, may_download
from psi_engine.patches.field import receptive_field
from psi_engine.types import ActivationShape
from tests.encoders.conftest import clip_file, tiny_clip
from tests.encoders.tiny import MEAN, STD, clip_model, images, register

__all__ = ["clip_file", "tiny_clip"]

QUICK = {"quick_gelu": True, "hf_hub": "me/tiny-quick/"}


@pytest.mark.parametrize("quick", [False, True])
def test_a_tower_is_open_clips(
    monkeypatch: pytest.MonkeyPatch, clip_file: str, quick: bool
) -> None:
    register(monkeypatch, openai=QUICK, laion={"hf_hub": "me/tiny-plain/"})
    loaded = load_model("open_clip:tiny", f"{'openai' if quick else 'laion'}={clip_file}")
    x = images(3)
    with torch.no_grad():
        assert torch.equal(loaded.module(x), clip_model(quick=quick).visual(x))
    assert (loaded.preprocess.image_size, loaded.preprocess.mean) == (32, MEAN)
    assert loaded.preprocess.std == STD
    assert loaded.categories is None
    assert not loaded.module.training
    assert not any(p.requires_grad for p in loaded.module.parameters())


def test_the_activation_is_in_the_fingerprint(
    monkeypatch: pytest.MonkeyPatch, clip_file: str
) -> None:
    register(monkeypatch, openai=QUICK, laion={"hf_hub": "me/tiny-plain/"})
    quick, plain, again = (
        load_model("open_clip:tiny", f"{tag}={clip_file}").fingerprint
        for tag in ("openai", "laion", "laion")
    )
    assert plain == again != quick


def test_random_weights_are_the_same_every_time() -> None:
    one, two = (load_model("open_clip:tiny", "none") for _ in range(2))
    assert one.fingerprint == two.fingerprint


def test_layers_of_a_tower_and_where_they_look() -> None:
    tower = load_model("open_clip:tiny", "none").module
    example = torch.zeros(1, 3, 32, 32)
    names = ["conv1", "transformer.resblocks.1", "transformer.resblocks.0.mlp.gelu"]
    shapes = activation_shapes(tower, names, example)
    assert shapes["conv1"] == ActivationShape("map", 32, (4, 4))
    assert shapes["transformer.resblocks.1"] == ActivationShape("tokens", 32, (17, 1))
    assert shapes["transformer.resblocks.0.mlp.gelu"] == ActivationShape("tokens", 128, (17, 1))
    x = images(4) - 0.5
    for name in names[1:]:
        field = receptive_field(tower, name, 32, "effective", shape=shapes[name], images=x)
        assert (field.source, field.tokens) == ("effective", (1, 4))
        assert field.jump == (8, 8)
        assert field.start == (4, 4)
        assert 8 <= field.size[0] <= 32
    found = choose_layers(tower, ["all"], example)
    assert {"transformer.resblocks.0", "transformer.resblocks.0.ls_1", "ln_post"} <= set(
        found.shapes
    )
    assert found.left_out["transformer.resblocks.0.attn"].startswith(
        "the output of layer 'transformer.resblocks.0.attn' is not a tensor; got tuple"
    )
    assert "does not run" in found.left_out["transformer.resblocks.0.attn.out_proj"]


def test_what_may_be_downloaded(monkeypatch: pytest.MonkeyPatch, clip_file: str) -> None:
    register(monkeypatch, openai=QUICK)
    assert may_download("resnet18", "default")
    assert not may_download("resnet18", "none")
    assert may_download("open_clip:tiny", "default")
    assert not may_download("open_clip:tiny", "none")
    assert not may_download("open_clip:tiny", clip_file)
    assert not may_download("open_clip:tiny", f"openai={clip_file}")
    with pytest.raises(ModelError, match=r"cannot be downloaded.*give --weights FILE"):
        may_download("open_clip:tiny", "openai")


@pytest.mark.parametrize(
    ("name", "weights", "message"),
    [
        ("open_clip:ViT-B-23", "none", "has no model 'ViT-B-23'; expected one of ViT-B-32"),
        ("open_clip:tiny", "default", "tiny has no default weights; expected a file"),
        ("open_clip:tiny", "no.pt", "no weights file no.pt.*check the path given to --weights"),
    ],
)
def test_mistakes(name: str, weights: str, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        load_model(name, weights)


@pytest.mark.slow
def test_a_real_architecture_of_each_family() -> None:
    for name, layer, shape in (
        ("open_clip:ViT-B-32", "transformer.resblocks.11", ActivationShape("tokens", 768, (50, 1))),
        ("open_clip:RN50", "layer4", ActivationShape("map", 2048, (7, 7))),
    ):
        loaded = load_model(name, "none")
        side = loaded.preprocess.image_size
        assert side == open_clip.get_model_config(name[10:])["vision_cfg"]["image_size"]
        found = activation_shapes(loaded.module, [layer], torch.zeros(1, 3, side, side))
        assert found[layer] == shape
