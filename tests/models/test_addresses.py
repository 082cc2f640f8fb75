"""Layers and channels by every spelling."""

from __future__ import annotations

import pytest
import torch
from torchvision import models as zoo

from psi_engine.errors import ModelError
from psi_engine.models import (
    activation_shapes,
    load_model,
    parse_channels,
    resolve_layers,
)
from psi_engine.types import ActivationShape
from tests.models.nets import Net


@pytest.mark.parametrize(
    ("patterns", "expected"),
    [
        (["head", "block1"], ["block1", "head"]),
        (["block?"], ["block1", "block2"]),
        (["block*.0", "block1.0"], ["block1.0", "block2.0"]),
        (["block[2]", "block2"], ["block2"]),
        (["block1*"], ["block1", "block1.0", "block1.1", "block1.2"]),
    ],
)
def test_layers(patterns: list[str], expected: list[str]) -> None:
    assert resolve_layers(Net(), patterns) == expected


@pytest.mark.parametrize(
    ("patterns", "message"),
    [
        (["blok1"], "unknown layer 'blok1'; expected one of block1, "),
        (["Head"], "unknown layer 'Head'; expected one of head"),
        (["0"], "unknown layer '0'; expected one of block1.0, block2.0"),
        (["xyz"], "unknown layer 'xyz'; expected names such as block1, block2, head, unused"),
        (["layer*"], r"no layer matches 'layer\*'; expected names such as"),
        ([""], "unknown layer ''"),
        ([], "no layers named"),
    ],
)
def test_unknown_layers(patterns: list[str], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        resolve_layers(Net(), patterns)


def test_activation_shapes() -> None:
    shapes = activation_shapes(Net(), ["head", "block1", "block2.0"], torch.zeros(1, 3, 12, 12))
    assert list(shapes.items()) == [
        ("head", ActivationShape("flat", 5, (1, 1))),
        ("block1", ActivationShape("map", 4, (10, 10))),
        ("block2.0", ActivationShape("map", 6, (8, 8))),
    ]
    with pytest.raises(ModelError, match="does not run; got unused"):
        activation_shapes(Net(), ["head", "unused"], torch.zeros(1, 3, 12, 12))
    with pytest.raises(
        ModelError, match=r"fails on images of shape \(3, 2, 2\); got RuntimeError.*--image-size"
    ):
        activation_shapes(Net(), ["head"], torch.zeros(1, 3, 2, 2))


def test_activation_shapes_of_transformers() -> None:
    vit = load_model("timm:test_vit", "none").module
    shapes = activation_shapes(vit, ["blocks.0", "patch_embed.proj"], torch.zeros(1, 3, 160, 160))
    assert shapes["blocks.0"] == ActivationShape("tokens", 64, (101, 1))
    assert shapes["patch_embed.proj"] == ActivationShape("map", 64, (10, 10))
    swin = zoo.swin_transformer.SwinTransformer([4, 4], 24, [1, 1], [2, 2], [4, 4])
    shapes = activation_shapes(swin.eval(), ["features.1"], torch.zeros(1, 3, 64, 64))
    assert shapes["features.1"] == ActivationShape("map", 24, (16, 16))


SHAPES = {
    "layer3": ActivationShape("map", 6, (4, 4)),
    "layer4.0": ActivationShape("flat", 50, (1, 1)),
}


@pytest.mark.parametrize(
    ("specs", "expected"),
    [
        ([], {"layer3": list(range(6)), "layer4.0": list(range(50))}),
        (["layer4.0:0-2"], {"layer3": list(range(6)), "layer4.0": [0, 1, 2]}),
        (["layer4.0:3,17,40-42"], {"layer3": list(range(6)), "layer4.0": [3, 17, 40, 41, 42]}),
        (["layer3:0-1,layer4.0:9, 4 ,9"], {"layer3": [0, 1], "layer4.0": [4, 9]}),
        (["layer3:5", "layer3:2", "layer4.0:49"], {"layer3": [2, 5], "layer4.0": [49]}),
    ],
)
def test_channels(specs: list[str], expected: dict[str, list[int]]) -> None:
    parsed = parse_channels(specs, SHAPES)
    assert {layer: numbers.tolist() for layer, numbers in parsed.items()} == expected
    assert list(parsed) == list(SHAPES)
    assert all(numbers.dtype == torch.int64 for numbers in parsed.values())


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("layer5:3", "not in the run: 'layer5'; expected one of layer3, layer4.0; add it to"),
        ("layer3:6", "no such channels in layer3; got 6; expected 0 to 5"),
        ("layer3:0-99", "no such channels in layer3; got 0-99"),
        ("layer3:4-2", "no such channels in layer3; got 4-2; .*ranges ascending"),
        ("layer3:", "bad channels; got 'layer3:'; expected such as layer4:0-63"),
        ("layer3:a", "bad channels"),
        ("layer3:-1", "bad channels"),
        ("layer3", "bad channels"),
        ("3-5", "bad channels"),
        ("layer3:1,,2", "bad channels"),
    ],
)
def test_bad_channels(spec: str, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        parse_channels([spec], SHAPES)
