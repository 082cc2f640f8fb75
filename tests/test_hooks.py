"""Captured activations against the ones computed by hand; hooks that always go away."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from psi_engine.errors import ModelError
from psi_engine.hooks import activation_shape, as_maps, capture
from psi_engine.types import ActivationShape


class Net(nn.Module):
    """Three convolutions; the second one's output is overwritten in place, ``act`` runs twice."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Conv2d(3, 4, 3)
        self.second = nn.Conv2d(4, 4, 3)
        self.act = nn.ReLU(inplace=True)
        self.third = nn.Conv2d(4, 2, 3)
        self.unused = nn.Conv2d(1, 1, 1)
        self.done = 0

    def forward(self, x: Tensor) -> Tensor:
        y = self.act(self.first(x))
        y = self.act(self.second(y))
        y += 1
        y = self.third(y)
        self.done += 1
        return y


def hooks_of(module: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in module.modules())


def by_hand(net: Net, x: Tensor) -> dict[str, Tensor]:
    with torch.no_grad():
        first = net.first(x)
        second = net.second(first.relu())
        third = net.third(second.relu() + 1)
    return {"first": first, "second": second, "act": second.relu(), "third": third}


@torch.no_grad()
def test_captured_outputs_are_as_the_layer_put_them_out() -> None:
    net, x = Net(), torch.randn(2, 3, 10, 10)
    expected = by_hand(net, x)
    with capture(net, ["first", "second", "act", "third"]) as outputs:
        net(x)
        assert list(outputs) == ["first", "second", "act", "third"]
        for name, value in expected.items():
            assert torch.equal(outputs[name], value), name
        x = torch.randn(1, 3, 9, 9)
        net(x)
        assert torch.equal(outputs["second"], by_hand(net, x)["second"])
    assert hooks_of(net) == 0


@torch.no_grad()
@pytest.mark.parametrize("layers", [["first"], ["act"], ["first", "second"], ["third"], [""]])
def test_run_stops_after_the_last_wanted_layer_and_changes_nothing(layers: list[str]) -> None:
    net = Net()
    with capture(net, layers) as outputs:
        for _ in range(3):
            x = torch.randn(2, 3, 10, 10)
            found = {name: outputs.run(x)[name].clone() for name in layers}
            expected = by_hand(net, x)
            expected[""] = expected["third"]
            for name in layers:
                assert torch.equal(found[name], expected[name]), name
    # The first pass learns how often layers run; the later two end before the model's last line.
    assert net.done == (3 if layers == [""] else 1)
    assert hooks_of(net) == 0


def test_a_model_that_catches_exceptions_cannot_swallow_the_stop() -> None:
    class Careful(Net):
        def forward(self, x: Tensor) -> Tensor:
            try:
                return super().forward(x)
            except Exception:
                return x

    net = Careful()
    with capture(net, ["first"]) as outputs:
        outputs.run(torch.zeros(1, 3, 8, 8))
        outputs.run(torch.zeros(1, 3, 8, 8))
    assert net.done == 1


def test_gradients_pass_through() -> None:
    net, x = Net(), torch.randn(1, 3, 10, 10, requires_grad=True)
    with capture(net, ["second"]) as outputs:
        net(x)
        (gradient,) = torch.autograd.grad(outputs["second"].sum(), x)
    (expected,) = torch.autograd.grad(net.second(net.first(x).relu()).sum(), x)
    assert torch.allclose(gradient, expected, rtol=0, atol=1e-6)


def test_hooks_are_removed_after_an_error() -> None:
    net = Net()
    with pytest.raises(RuntimeError), capture(net, ["first", "third"]) as outputs:
        outputs.run(torch.zeros(1, 5, 10, 10))
    assert hooks_of(net) == 0
    with (
        pytest.raises(ModelError, match="unknown layers; got nope"),
        capture(net, ["first", "nope"]),
    ):
        pass
    assert hooks_of(net) == 0


def test_a_layer_that_does_not_run() -> None:
    with (
        pytest.raises(ModelError, match="layers that the model does not run; got unused"),
        capture(Net(), ["first", "unused"]) as outputs,
    ):
        outputs.run(torch.zeros(1, 3, 10, 10))


@torch.no_grad()
@pytest.mark.parametrize("times", [1, 3])
def test_consuming_a_layer_called_another_number_of_times_is_refused(times: int) -> None:
    class Adaptive(Net):
        def forward(self, x: Tensor) -> Tensor:
            for _ in range(2 if x.amax() < 1 else times):
                x = self.act(x)
            return self.first(x)

    given: list[str] = []
    layers, x = ["act", "first"], torch.zeros(1, 3, 9, 9)
    with capture(Adaptive(), layers, lambda layer, output: given.append(layer)) as outputs:
        outputs.run(x)
        outputs.run(x)
        assert given == layers
        with pytest.raises(ModelError, match=f"for some images.*act: {times} times; expected 2"):
            outputs.run(x + 2)


def test_an_output_that_is_no_tensor() -> None:
    attention = nn.Sequential()
    attention.add_module("lstm", nn.LSTM(4, 5))
    with (
        pytest.raises(ModelError, match="output of layer 'lstm' is not a tensor; got tuple"),
        capture(attention, ["lstm"]),
    ):
        attention(torch.zeros(2, 4))


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        ((2, 5, 7, 7), ActivationShape("map", 5, (7, 7))),
        ((2, 7, 7, 7), ActivationShape("map", 7, (7, 7))),
        ((2, 7, 7, 5), ActivationShape("map", 5, (7, 7))),
        ((2, 9, 6), ActivationShape("tokens", 6, (9, 1))),
        ((2, 6), ActivationShape("flat", 6, (1, 1))),
    ],
)
def test_shapes_and_maps(output: tuple[int, ...], expected: ActivationShape) -> None:
    x = torch.randn(output)
    shape = activation_shape("layer", x, torch.zeros(2, 3, 28, 28))
    assert shape == expected
    maps = as_maps(x, shape)
    assert maps.shape == (2, expected.channels, *expected.grid)
    assert maps.untyped_storage().data_ptr() == x.untyped_storage().data_ptr()
    last = output[-1] - 1
    if expected.kind == "tokens":
        assert maps[1, last, 3, 0] == x[1, 3, last]
    elif expected.kind == "flat":
        assert maps[1, last, 0, 0] == x[1, last]
    elif output == (2, 7, 7, 5):
        assert maps[1, 4, 2, 6] == x[1, 2, 6, 4]
    else:
        assert torch.equal(maps, x)
    bigger = torch.randn(2, *(side + 1 for side in output[1:]))
    with pytest.raises(ModelError, match="changed its output's layout"):
        as_maps(bigger, shape)


def test_maps_of_oblong_images_are_channels_first() -> None:
    shape = activation_shape("layer", torch.zeros(1, 8, 8, 12), torch.zeros(1, 3, 16, 24))
    assert shape == ActivationShape("map", 8, (8, 12))


@pytest.mark.parametrize(
    ("output", "message"),
    [
        (torch.zeros(2), r"'x' has rank 1; got \(2,\)"),
        (torch.zeros(2, 1, 1, 1, 1), "rank 5"),
        (torch.zeros(9, 2, 4), r"first axis of layer 'x' is not the batch; got \(9, 2, 4\) for 2"),
        (torch.zeros(2, 4, dtype=torch.int64), "not floating point; got torch.int64"),
        (torch.zeros(2, 0, 4), "is empty"),
    ],
)
def test_outputs_that_are_no_activations(output: Tensor, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        activation_shape("x", output, torch.zeros(2, 3, 8, 8))


def test_outputs_are_consumed_where_they_arise() -> None:
    """The last call of a layer counts, in-place work behind it does not, nothing is kept."""
    net, x = Net().eval(), torch.randn(2, 3, 16, 16)
    with torch.no_grad(), capture(net, ["second", "act"]) as outputs:
        expected = {name: y.clone() for name, y in outputs.run(x).items()}
    taken: list[tuple[str, Tensor]] = []
    with (
        torch.no_grad(),
        capture(net, ["second", "act"], lambda name, y: taken.append((name, y.clone()))) as outputs,
    ):
        outputs.run(x)
        assert not taken  # the first pass counts
        for _ in range(2):
            outputs.run(x)
            assert not outputs
            assert [name for name, _ in taken] == ["second", "act"]
            for name, y in taken:
                assert torch.equal(y, expected[name])
            taken.clear()
