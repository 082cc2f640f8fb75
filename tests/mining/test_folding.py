"""Batch norms folded into convolutions: which, to what accuracy, and when not at all."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from psi_engine.config import MineConfig
from psi_engine.hooks import capture
from psi_engine.mining import mine
from psi_engine.mining.folding import TOLERANCE, folded
from psi_engine.models import attach_latents

CLOSE = 1e-5
"""Share of a layer's largest activation: rounding, far below what is let through."""


def seeded(make: Callable[[], nn.Module]) -> nn.Module:
    """Build a model whose batch norms have seen data, in evaluation mode."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = make()
        for part in module.modules():
            if isinstance(part, nn.BatchNorm2d):
                nn.init.uniform_(part.weight, 0.5, 1.5)
                nn.init.normal_(part.bias)
                if part.track_running_stats:
                    part.running_mean.normal_()
                    part.running_var.uniform_(0.3, 3.0)
    return module.eval().requires_grad_(False)


def images(side: int = 16, n: int = 2) -> Tensor:
    return torch.randn(n, 3, side, side, generator=torch.Generator().manual_seed(1))


def outputs(module: nn.Module, layers: list[str], x: Tensor) -> dict[str, Tensor]:
    with torch.inference_mode(), capture(module, layers) as found:
        return dict(found.run(x))


def folded_agreeing(module: nn.Module, layers: list[str], x: Tensor) -> tuple[nn.Module, list[str]]:
    """Fold; the original must be untouched, and the layers the same on images not seen."""
    before = {name: value.clone() for name, value in module.state_dict().items()}
    parts = dict(module.named_modules())
    hooks = {name: dict(part._forward_hooks) for name, part in parts.items()}
    network, notes = folded(module, layers, x)
    assert dict(module.named_modules()) == parts
    assert {name: dict(part._forward_hooks) for name, part in parts.items()} == hooks
    assert not any(part._forward_pre_hooks for part in parts.values())
    for name, value in module.state_dict().items():
        assert torch.equal(value, before[name])
    fresh = x.flip(-1) + 0.5
    for name, value in outputs(module, layers, fresh).items():
        other = outputs(network, layers, fresh)[name]
        assert (value - other).abs().max() <= CLOSE * value.abs().max()
    return network, notes


def left(network: nn.Module) -> list[str]:
    return [name for name, part in network.named_modules() if isinstance(part, nn.BatchNorm2d)]


@pytest.fixture(scope="module")
def resnet() -> nn.Module:
    torchvision = pytest.importorskip("torchvision", reason="torchvision is a dependency")
    return seeded(lambda: torchvision.models.resnet18(weights=None))


def test_every_batch_norm_of_a_resnet_is_folded(resnet: nn.Module) -> None:
    network, notes = folded_agreeing(resnet, ["layer1.0", "layer4", "fc"], images(64))
    assert left(network) == []
    assert notes == ["20 of 20 batch norms are folded into convolutions"]
    assert left(resnet)
    convolutions = [part for part in network.modules() if isinstance(part, nn.Conv2d)]
    assert all(c.weight.is_contiguous(memory_format=torch.channels_last) for c in convolutions)
    assert network.fc.weight is resnet.fc.weight  # nothing else is copied


def test_wanted_batch_norms_and_convolutions_are_left_alone(resnet: nn.Module) -> None:
    wanted = ["bn1", "layer2.0.conv1", "layer3"]
    network, notes = folded_agreeing(resnet, wanted, images(64))
    assert left(network) == ["bn1", "layer2.0.bn1"]
    assert notes == [
        "18 of 20 batch norms are folded into convolutions (left alone: 2 wanted as layers)"
    ]


class Pair(nn.Module):
    """A convolution and a batch norm, the convolution in a container of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 3))
        self.norm = nn.BatchNorm2d(4)
        self.head = nn.Conv2d(4, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.stem(x)).relu_())


def test_a_wanted_container_that_puts_out_a_convolution() -> None:
    network, _ = folded_agreeing(seeded(Pair), ["head"], images())
    assert left(network) == []
    network, notes = folded_agreeing(seeded(Pair), ["stem", "head"], images())
    assert left(network) == ["norm"]
    assert "left alone: 1 not fed by a convolution alone" in notes[0]


class Shared(Pair):
    """One batch norm run twice, and one convolution that feeds two batch norms."""

    def __init__(self) -> None:
        super().__init__()
        self.twice = nn.Conv2d(4, 4, 1)
        self.one, self.other = nn.BatchNorm2d(4), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.twice(self.norm(self.stem(x))))
        x = self.twice(x)
        return self.head(self.one(x) + self.other(x))


class Alias(Pair):
    """A batch norm with two names."""

    def __init__(self) -> None:
        super().__init__()
        self.again = self.norm

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.again(self.stem(x)))


class Residual(Pair):
    """What the convolution puts out is used past the batch norm."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head(self.norm(x) + x)


class Between(Pair):
    """The batch norm does not directly follow the convolution."""

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.stem(x).relu()))


class InPlace(Pair):
    """The convolution's output is changed before the batch norm sees it."""

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.stem(x).relu_()))


class Special(nn.BatchNorm2d):
    """May do more than its class says."""


class Kind(Pair):
    def __init__(self) -> None:
        super().__init__()
        self.norm = Special(4)


class Stateless(Pair):
    """A batch norm of the batch's own statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(4, track_running_stats=False)


@pytest.mark.parametrize(
    ("make", "kept"),
    [
        (Shared, ["norm", "one", "other"]),
        (Alias, ["norm"]),
        (Residual, ["norm"]),
        (Between, ["norm"]),
        (InPlace, ["norm"]),
        (Kind, ["norm"]),
        (Stateless, ["norm"]),
    ],
)
def test_what_cannot_be_folded_is_left_alone(make: type[nn.Module], kept: list[str]) -> None:
    network, notes = folded_agreeing(seeded(make), ["head"], images())
    assert left(network) == kept
    assert notes[0].startswith(f"0 of {len(kept)} batch norms")


def test_without_affine_parameters_and_with_a_bias() -> None:
    class Plain(Pair):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm2d(4)
            self.second = nn.BatchNorm2d(5, affine=False)

        def forward(self, x: Tensor) -> Tensor:
            return self.second(super().forward(x))

    module = seeded(Pair)
    module.add_module("second", nn.BatchNorm2d(5, affine=False).eval())
    module.second.running_mean.fill_(0.3)
    module.second.running_var.fill_(0.2)
    module.__class__ = Plain
    network, notes = folded_agreeing(nn.Sequential(module), ["0"], images())
    assert left(network) == []
    assert notes == ["2 of 2 batch norms are folded into convolutions"]


def test_modules_with_hooks_are_left_alone_and_keep_them() -> None:
    module = seeded(Pair)
    seen: list[tuple[int, ...]] = []
    module.norm.register_forward_hook(lambda *call: seen.append(tuple(call[2].shape)))
    network, notes = folded_agreeing(module, ["head"], images())
    assert left(network) == ["norm"]
    assert "1 with hooks" in notes[0]
    seen.clear()
    network(images())
    assert seen == [(2, 4, 14, 14)]


@pytest.mark.parametrize(
    ("layer", "kept"), [("stem", ["norm"]), ("stem.0", ["norm"]), ("norm", ["norm"]), ("head", [])]
)
def test_latents_of_a_layer_are_those_of_the_model(layer: str, kept: list[str]) -> None:
    module = seeded(Pair)
    width = 5 if layer == "head" else 4
    sae = seeded(lambda: nn.Linear(width, 9))
    name, _ = attach_latents(module, layer, sae, images())
    network, _ = folded_agreeing(module, [name], images())
    assert left(network) == kept
    assert network.get_submodule(name) is not module.get_submodule(name)


def test_a_model_without_batch_norms_is_not_spoken_of() -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3)).eval()
    network, notes = folded_agreeing(module, ["2"], images())
    assert notes == []
    assert network[2].weight.is_contiguous(memory_format=torch.channels_last)
    linear = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 2)).eval()
    assert folded(linear, ["1"], images()) == (linear, [])


class ReadsItsParts(Pair):
    """Takes weights and settings of its modules beside running them."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * self.norm.num_features


class ReadsWeights(Pair):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * self.stem[0].weight.sum()


class Unique(Pair):
    def __deepcopy__(self, memo: dict[int, object]) -> Unique:
        raise RuntimeError("there is only one")


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (ReadsItsParts, "AttributeError: 'Identity' object has no attribute 'num_features'"),
        (ReadsWeights, "head would differ by|norm would differ by|1 would differ by"),
        (Unique, "RuntimeError: there is only one"),
    ],
)
def test_what_does_not_agree_is_not_folded(make: type[nn.Module], reason: str) -> None:
    module = nn.Sequential(seeded(make), nn.Identity()).eval()
    network, notes = folded(module, ["1"], images())
    assert network is module
    assert left(network) == ["0.norm"]
    assert notes[0].startswith("batch norms are not folded: ")
    assert any(part in notes[0] for part in reason.split("|"))


def test_the_check_can_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    from psi_engine.mining import folding

    def wrong(share: float) -> Callable[..., nn.Module]:
        def fuse(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> nn.Module:
            fused = folding.nn.utils.fusion.fuse_conv_bn_eval(conv, norm)
            fused.weight *= 1 + share
            fused.bias *= 1 + share
            return fused

        return fuse

    class Line(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

        def forward(self, x: Tensor) -> Tensor:
            return self.norm(self.conv(x))

    module = nn.Sequential(seeded(Line), nn.Identity()).eval()
    for share, accepted in ((0.5 * TOLERANCE, True), (2 * TOLERANCE, False)):
        monkeypatch.setattr(folding, "fuse_conv_bn_eval", wrong(share))
        network, notes = folded(module, ["1"], images())
        assert (network is not module) == accepted
        assert ("1 would differ by" in notes[0]) != accepted


def test_a_model_that_puts_out_nan() -> None:
    class Broken(Pair):
        def forward(self, x: Tensor) -> Tensor:
            x = super().forward(x)
            x[:, 0] = torch.nan
            return x

    module = nn.Sequential(seeded(Broken), nn.Identity()).eval()
    network, notes = folded(module, ["1"], images())
    assert left(network) == []
    assert notes == ["1 of 1 batch norms are folded into convolutions"]


def mined(device: str) -> tuple[Tensor, list[str]]:
    """The highest activations of a layer, and the notes."""
    notes: list[str] = []
    config = MineConfig(top_k=5, bottom_k=0, reservoir=0, pool=8)
    data = TensorDataset(images(n=20))
    found = mine(seeded(Pair), data, ["head"], config, device=device, notes=notes)
    return found["head"].top.values.cpu(), notes


def test_cpus_never_fold(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("psi_engine.mining.stream.folded", None)
    assert mined("cpu")[1] == []


@pytest.mark.gpu
def test_gpus_fold_and_say_so() -> None:
    highest, notes = mined("cuda")
    assert notes == ["1 of 1 batch norms are folded into convolutions"]
    torch.testing.assert_close(highest, mined("cpu")[0], atol=1e-4, rtol=1e-4)
