"""Receptive fields: known values, the gradient's support, energy windows, tokens."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from psi_engine.errors import InputError
from psi_engine.models import activation_shapes
from psi_engine.patches.field import receptive_field
from psi_engine.types import ReceptiveField
from tests.reference import receptive_field as reference


def field(
    module: nn.Module, layer: str, side: int, kind="theoretical", images=None, **more
) -> ReceptiveField:
    module.eval()
    shape = activation_shapes(module, [layer], torch.zeros(1, 3, side, side))[layer]
    return receptive_field(module, layer, side, kind, shape=shape, images=images, **more)


def positive(module: nn.Module) -> nn.Module:
    """All weights positive, so that contributions cannot cancel; max pools averaged, so that
    every pixel passes."""
    for name, part in module.named_modules():
        if isinstance(part, nn.MaxPool2d):
            parent = module.get_submodule(name.rpartition(".")[0])
            pool = nn.AvgPool2d(part.kernel_size, part.stride, part.padding)
            setattr(parent, name.rpartition(".")[2], pool)
    with torch.no_grad():
        for weight in module.parameters():
            weight.copy_(weight.abs() + 0.01)
            if weight.ndim > 1:
                weight.div_(weight[0].numel())
    return module.double().eval()


def assert_supported(module: nn.Module, found: ReceptiveField, side: int) -> None:
    """The gradient of the central unit touches exactly the pixels of its window."""
    x = torch.rand(1, 3, side, side, dtype=torch.float64)
    with torch.no_grad():
        grid = module(x).shape[2:]
    u, v = grid[0] // 2, grid[1] // 2
    extent = reference.extent(reference.touched(module, x, u, v))
    for axis, unit in ((0, u), (1, v)):
        centre = found.start[axis] + unit * found.jump[axis]
        low, high = centre - found.size[axis] / 2, centre + found.size[axis] / 2
        assert (max(0, low), min(side, high)) == extent[2 * axis : 2 * axis + 2]


@pytest.mark.parametrize(("stage", "size"), [(1, 35), (2, 91), (3, 267), (4, 427)])
def test_resnet50_has_its_known_fields(stage: int, size: int) -> None:
    from torchvision.models import resnet50

    found = field(resnet50(weights=None), f"layer{stage}", 64)
    assert found.size == (size, size)
    assert found.source == "graph"
    expected = reference.recursion(reference.resnet50(stage))
    assert (found.size[0], found.jump[0], found.start[0]) == expected


@pytest.mark.parametrize(
    ("stage", "side"),
    [
        (1, 64),
        (2, 128),
        pytest.param(3, 320, marks=pytest.mark.slow),
        pytest.param(4, 480, marks=pytest.mark.slow),
    ],
)
def test_resnet50_s_gradient_has_that_support(stage: int, side: int) -> None:
    from torchvision.models import resnet50

    module = resnet50(weights=None)
    found = field(module, f"layer{stage}", side)
    cut = nn.Sequential(*list(positive(module).children())[: 4 + stage])
    assert_supported(cut, found, side)


ALEXNET = [
    (11, 4, 2, 1),
    (3, 2, 0, 1),
    (5, 1, 2, 1),
    (3, 2, 0, 1),
    *[(3, 1, 1, 1)] * 3,
    (3, 2, 0, 1),
]
MOBILENET_V2 = [(3, 2, 1, 1)] + [
    (3, stride if i == 0 else 1, 1, 1)
    for blocks, stride in ((1, 1), (2, 2), (3, 2), (4, 2), (3, 1), (3, 2), (1, 1))
    for i in range(blocks)
]


@pytest.mark.parametrize(
    ("name", "path", "side"), [("alexnet", ALEXNET, 224), ("mobilenet_v2", MOBILENET_V2, 64)]
)
def test_other_networks_follow_the_recursion(name: str, path: list, side: int) -> None:
    import torchvision

    found = field(getattr(torchvision.models, name)(weights=None), "features", side)
    assert (found.size[0], found.jump[0], found.start[0]) == reference.recursion(path)
    assert found.source == "graph"


@pytest.mark.parametrize(
    "activation",
    [
        nn.ReLU6(inplace=True),
        nn.ELU(inplace=True),
        nn.LeakyReLU(0.1, inplace=True),
        nn.Mish(inplace=True),
        nn.Hardswish(inplace=True),
        nn.Threshold(0.1, 0.0, inplace=True),
        nn.PReLU(),
        nn.GELU(),
    ],
    ids=lambda module: type(module).__name__,
)
def test_activations_leave_the_graph_readable(activation: nn.Module) -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), activation, nn.Conv2d(4, 4, 3, padding=1))
    found = field(net, "2", 32)
    assert (found.size, found.source) == ((5, 5), "graph")


class Residual(nn.Module):
    def __init__(self, kernel: int, dilation: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 2, kernel, padding=dilation * (kernel // 2), dilation=dilation)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.conv(x)) + x


@given(
    steps=st.lists(
        st.one_of(
            st.tuples(
                st.just("conv"),
                st.integers(1, 4),
                st.integers(1, 2),
                st.integers(0, 2),
                st.integers(1, 2),
            ),
            st.tuples(st.just("pool"), st.integers(1, 3), st.integers(1, 2)),
            st.tuples(st.just("residual"), st.sampled_from([1, 3]), st.integers(1, 2)),
        ),
        min_size=1,
        max_size=4,
    )
)
@settings(max_examples=25, deadline=None)
def test_random_networks_have_the_gradient_s_support(steps) -> None:
    parts: list[nn.Module] = [nn.Conv2d(3, 2, 1)]
    for kind, *numbers in steps:
        if kind == "conv":
            kernel, stride, padding, dilation = numbers
            parts += [
                nn.Conv2d(2, 2, kernel, stride, padding, dilation),
                nn.BatchNorm2d(2),
                nn.ReLU(),
            ]
        elif kind == "pool":
            kernel, stride = numbers
            parts.append(nn.MaxPool2d(kernel, stride, padding=kernel // 2))
        else:
            parts.append(Residual(*numbers))
    module = nn.Sequential(nn.Sequential(*parts))
    found = field(module, "0", 48)
    assert found.source == "graph"
    assert_supported(positive(module), found, 48)


class Gated(nn.Module):
    """Squeeze and excitation: its maps see the whole image, from where they are."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, stride=2, padding=1)
        self.gate = nn.Conv2d(4, 4, 1)
        self.out = nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.out(x * torch.sigmoid(self.gate(x.mean((2, 3), keepdim=True))))


def test_a_gate_over_the_image_sees_the_image() -> None:
    assert field(Gated(), "stem", 32).size == (3, 3)
    found = field(Gated(), "out", 32)
    assert found == ReceptiveField((32, 32), (2, 2), (0.5, 0.5), "graph")


def test_a_group_norm_sees_the_image_and_a_layer_norm_over_channels_does_not() -> None:
    class Norms(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 4, stride=4)
            self.channels = nn.LayerNorm(4)
            self.groups = nn.GroupNorm(2, 4)

        def forward(self, x: Tensor) -> Tensor:
            x = self.channels(self.conv(x).permute(0, 2, 3, 1))
            return self.groups(x.permute(0, 3, 1, 2))

    assert field(Norms(), "channels", 32) == ReceptiveField((4, 4), (4, 4), (2, 2), "graph")
    assert field(Norms(), "groups", 32) == ReceptiveField((32, 32), (4, 4), (2, 2), "graph")


class Rolled(nn.Module):
    """A shift along the rows has no rule; what follows must be measured."""

    def __init__(self) -> None:
        super().__init__()
        self.before = nn.Conv2d(3, 4, 2, stride=2)
        self.after = nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.after(torch.roll(self.before(x), 2, dims=2))


def test_an_operation_without_a_rule_is_measured() -> None:
    assert field(Rolled(), "before", 32).source == "graph"
    found = field(Rolled(), "after", 32)
    assert found.source == "gradient"
    # The unit at row 17 sees stem rows 5 to 7, pixels 10 to 15: the farther side counts on both.
    assert found.size == (2 * (17 - 10), 2 * (20 - 17))
    assert found.jump == (2, 2)


class Written(nn.Module):
    """Writes into a view of its own activations: there is no rule, and no wrong answer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.out = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        far = torch.flip(y, (2, 3)) if y.requires_grad else y
        z = torch.zeros_like(y) + 0 * y
        z[:, :, 2:] = far[:, :, :-2]
        return self.out(z)


def test_writing_into_a_view_is_not_missed() -> None:
    assert field(Written(), "out", 16).source == "gradient"


def test_flat_outputs_look_at_the_image() -> None:
    module = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5)
    )
    whole = ReceptiveField((16, 16), (0, 0), (8, 8), "image")
    for kind in ("theoretical", "effective", 5):
        assert field(module, "3", 16, kind, torch.zeros(1, 3, 16, 16)) == whole


class Tokens(nn.Module):
    """A small vision transformer with two prefix tokens."""

    def __init__(self, patch: int = 4, side: int = 16) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, 8, patch, stride=patch)
        self.prefix = nn.Parameter(torch.randn(1, 2, 8))
        self.place = nn.Parameter(torch.randn(1, 2 + (side // patch) ** 2, 8))
        self.drop = nn.Dropout()
        self.block = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, norm_first=True)
        self.flat = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = self.flat(self.embed(x).flatten(2).transpose(1, 2))
        x = self.drop(torch.cat([self.prefix.expand(len(x), -1, -1), x], 1) + self.place)
        return self.block(x)


def test_tokens_are_a_grid_of_patches() -> None:
    module = Tokens()
    centres = {"jump": (4, 4), "start": (2, 2)}
    assert field(module, "flat", 16) == ReceptiveField(
        (4, 4), source="graph", tokens=(0, 4), **centres
    )
    # After the concatenation a place is no longer regular: measured.
    assert field(module, "drop", 16) == ReceptiveField(
        (4, 4), source="gradient", tokens=(2, 4), **centres
    )
    assert field(module, "block", 16) == ReceptiveField(
        (16, 16), source="graph", tokens=(2, 4), **centres
    )
    assert field(module, "block", 16, 6) == ReceptiveField(
        (6, 6), source="pixels", tokens=(2, 4), **centres
    )


def test_a_token_s_effective_field_is_around_its_patch() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        found = field(Tokens(), "block", 16, "effective", torch.randn(4, 3, 16, 16))
    assert found.source == "effective"
    assert found.tokens == (2, 4)
    assert 4 <= found.size[0] <= 16


def test_tokens_that_are_no_patches_look_at_the_image() -> None:
    class Sequence(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.out = nn.Linear(16, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(x.flatten(1)[:, : 16 * 9].unflatten(1, (9, 16)))

    assert field(Sequence(), "out", 16).source == "image"
    assert field(Sequence(), "out", 16, 5).size == (16, 16)


def linear(kernel: Tensor) -> nn.Module:
    """One channel per kernel (channels, side, side), same for each colour."""
    channels, side, _ = kernel.shape
    conv = nn.Conv2d(3, channels, side, padding=side // 2, bias=False)
    with torch.no_grad():
        conv.weight.copy_(kernel[:, None].expand(-1, 3, -1, -1))
    return nn.Sequential(conv, nn.Identity())


@given(seed=st.integers(0, 999), share=st.floats(0.05, 0.99))
@settings(max_examples=15, deadline=None)
def test_the_window_holds_the_share_of_energy(seed: int, share: float) -> None:
    kernel = torch.randn(
        1, 9, 9, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )
    found = field(linear(kernel), "0", 17, "effective", torch.zeros(1, 3, 17, 17), energy=share)
    energy = np.zeros((17, 17))
    energy[4:13, 4:13] = kernel[0].double().square().numpy()
    assert found.size[0] == reference.energy_side(energy, 8.5, 8.5, share)


def test_every_channel_counts() -> None:
    """A wide channel beside seven narrow ones: the energy is the sum, no channel cancels."""
    kernels = torch.zeros(8, 7, 7)
    kernels[:, 3, 3] = 1.0
    kernels[5] = 1.0  # 49 of 56: a share of 0.95 needs the whole wide kernel
    found = field(linear(kernels), "0", 17, "effective", torch.zeros(8, 3, 17, 17))
    assert found.size == (7, 7)


def test_images_are_averaged_whatever_their_batch() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = nn.Sequential(
            nn.Conv2d(3, 6, 5, padding=2), nn.ReLU(), nn.Conv2d(6, 6, 5, padding=2)
        )
    images = torch.randn(9, 3, 20, 20, generator=torch.Generator().manual_seed(1))
    found = field(module, "2", 20, "effective", images)
    assert found == field(module, "2", 20, "effective", images)
    assert 1 <= found.size[0] <= 9
    assert found.source == "effective"


def test_silent_channels_fall_back_to_the_graph() -> None:
    module = nn.Sequential(nn.Conv2d(3, 2, 5), nn.ReLU())
    with torch.no_grad():
        module[0].bias.fill_(-1e6)
    found = field(module, "1", 16, "effective", torch.randn(2, 3, 16, 16))
    assert found == ReceptiveField((5, 5), (1, 1), (2.5, 2.5), "graph")


def test_a_side_in_pixels_keeps_the_centres() -> None:
    module = nn.Sequential(nn.Conv2d(3, 2, 3, stride=2, padding=1))
    assert field(module, "0", 16, 7) == ReceptiveField((7, 7), (2, 2), (0.5, 0.5), "pixels")


def test_the_model_is_left_as_it_was() -> None:
    module = Rolled()
    field(module, "after", 16)
    module.train()
    before = {name: x.clone() for name, x in module.state_dict().items()}
    shape = activation_shapes(module, ["after"], torch.zeros(1, 3, 16, 16))["after"]
    receptive_field(module, "after", 16, "effective", shape=shape, images=torch.randn(2, 3, 16, 16))
    receptive_field(module, "after", 16, "theoretical", shape=shape)
    assert module.training
    assert module.before.training
    assert all(weight.grad is None for weight in module.parameters())
    assert not module.after._forward_hooks
    for name, x in module.state_dict().items():
        assert torch.equal(x, before[name])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "wide"}, "'wide'"),
        ({"kind": 0}, "got 0"),
        ({"kind": True}, "got True"),
        ({"kind": "effective"}, "needs images"),
        ({"images": torch.zeros(1, 3, 8, 16)}, "probe images"),
        ({"images": torch.zeros(0, 3, 16, 16)}, "probe images"),
        ({"energy": 1.0}, "energy"),
    ],
)
def test_bad_input_is_refused(changes: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        field(Rolled(), "after", 16, **changes)


@pytest.mark.slow
@pytest.mark.parametrize(("layer", "size"), [("layer3", 88), ("layer4", 154)])
def test_real_resnet50_has_its_measured_field(shared: Path, layer: str, size: int) -> None:
    """About 88 and 154 pixels at 224, by an independent prototype; probes differ, hence 5 %."""
    from safetensors.torch import load_file
    from torchvision.models import resnet50

    from psi_engine.data import Preprocess, batches, open_source

    weights = shared / "weights" / "resnet50_imagenet_quantised.safetensors"
    if not weights.is_file():
        pytest.skip(f"{weights} is not there")
    module = resnet50(weights=None)
    module.load_state_dict(load_file(weights))
    preprocess = Preprocess(224, 224)
    source = open_source(shared / "data" / "tiny-imagenet")
    batch = next(iter(batches(source, preprocess, batch_size=16, skipped={})))
    found = field(module, layer, 224, "effective", preprocess.normalise(batch.views))
    assert found.size[0] == pytest.approx(size, rel=0.05)
