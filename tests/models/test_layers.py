"""What a run takes when layers are named by globs."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import resnet18

from psi_engine.errors import ModelError
from psi_engine.models import choose_layers, load_model
from psi_engine.types import ActivationShape
from tests.models.nets import Net
from tests.models.saes import HERE

X = torch.zeros(1, 3, 12, 12)


def hooks_of(module: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in module.modules())


def test_all_takes_each_output_once_and_says_what_it_leaves_out() -> None:
    net = Net().eval()
    found = choose_layers(net, ["all"], X)
    assert list(found.shapes) == [
        "block1", "block1.0", "block1.1", "block2", "block2.0", "head"
    ]  # fmt: skip
    assert found.shapes["block1.1"] == ActivationShape("map", 4, (10, 10))
    assert found.left_out == {
        "block1.2": "puts out the same as block1",
        "block2.1": "puts out the same as block2",
        "unused": "the model does not run it; leave it out",
    }
    assert hooks_of(net) == 0


def test_a_name_in_full_is_taken_before_its_equal() -> None:
    found = choose_layers(Net().eval(), ["block1.2", "block1*"], X)
    assert list(found.shapes) == ["block1.0", "block1.1", "block1.2"]
    assert found.left_out == {"block1": "puts out the same as block1.2"}
    both = choose_layers(Net().eval(), ["block1.2", "block1"], X)
    assert list(both.shapes) == ["block1", "block1.2"]
    assert not both.left_out


def test_outputs_that_are_changed_in_place_are_different_layers() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True), nn.Dropout()).eval()
    found = choose_layers(net, ["all"], X)
    assert list(found.shapes) == ["0", "1"]
    assert found.left_out == {"2": "puts out the same as 1"}


def test_depth_is_the_share_of_weight_layers_that_have_run() -> None:
    found = choose_layers(Net().eval(), ["all"], X)
    assert found.depths == {
        "block1": 1 / 3, "block1.0": 1 / 3, "block1.1": 1 / 3, "block2": 2 / 3, "block2.0": 2 / 3,
        "head": 1.0,
    }  # fmt: skip
    model = load_model("tests.toy:model", latents=[f"conv2={HERE}:of_maps"]).module
    found = choose_layers(model, ["conv*", "latents.conv2"], torch.zeros(1, 3, 32, 32))
    assert found.depths == {"conv1": 1 / 3, "conv2": 2 / 3, "latents.conv2": 2 / 3}


def test_all_of_a_resnet() -> None:
    found = choose_layers(resnet18().eval(), ["all"], torch.zeros(1, 3, 64, 64))
    assert {"conv1", "bn1", "layer1", "layer1.0", "layer4.1.conv2", "avgpool", "fc"} <= set(
        found.shapes
    )
    assert found.left_out["layer4.1"] == "puts out the same as layer4"
    assert found.left_out["layer4.1.relu"] == "puts out the same as layer4"
    depths = [found.depths[f"layer{stage}"] for stage in (1, 2, 3, 4)]
    assert depths == [5 / 21, 10 / 21, 15 / 21, 20 / 21]


class Odd(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3)
        self.lstm = nn.LSTM(10, 5, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.lstm(self.first(x)[:, 0])[0]


def test_what_cannot_be_scored_is_left_out_of_globs_and_refused_by_name() -> None:
    net = Odd().eval()
    found = choose_layers(net, ["all"], X)
    assert list(found.shapes) == ["first"]
    assert found.left_out["lstm"].startswith("the output of layer 'lstm' is not a tensor; got tup")
    with pytest.raises(ModelError, match="layer 'lstm' cannot be scored; got the output of layer"):
        choose_layers(net, ["lstm", "first"], X)
    with pytest.raises(ModelError, match="none of the layers can be scored; got lstm: the output"):
        choose_layers(net, ["ls*"], X)
    with pytest.raises(ModelError, match="layer 'unused' cannot be scored; got the model does not"):
        choose_layers(Net().eval(), ["unused"], X)
    with pytest.raises(ModelError, match=r"fails on images of shape \(3, 2, 2\).*--image-size"):
        choose_layers(net, ["all"], torch.zeros(1, 3, 2, 2))
    assert hooks_of(net) == 0
