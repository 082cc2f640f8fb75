"""Models by name, weights from everywhere, layers and channels by every spelling."""

from __future__ import annotations

import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn
from torchvision import models as zoo

from psi_engine.data import Preprocess
from psi_engine.errors import EncoderError, ModelError
from psi_engine.models import (
    activation_shapes,
    cached_weights,
    import_factory,
    load_model,
    parse_channels,
    resolve_layers,
)
from psi_engine.types import ActivationShape

SMALL = "shufflenet_v2_x0_5"
TIMM = "timm:mobilenetv3_small_050.lamb_in1k"


class Net(nn.Module):
    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.block1 = nn.Sequential(nn.Conv2d(3, width, 3), nn.BatchNorm2d(width), nn.ReLU())
        self.block2 = nn.Sequential(nn.Conv2d(width, 6, 3), nn.ReLU())
        self.head = nn.Linear(6, 5)
        self.unused = nn.Linear(1, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.block2(self.block1(x)).mean((2, 3)))


def build() -> nn.Module:
    return Net()


def build_with_preprocess() -> tuple[nn.Module, Preprocess]:
    return Net(), Preprocess(image_size=20, resize=24, interpolation="bicubic")


def build_nonsense() -> tuple[str, int]:
    return "not", 1


FACTORY = f"{__name__}:build"


def states_equal(a: nn.Module, b: nn.Module) -> bool:
    one, two = a.state_dict(), b.state_dict()
    return one.keys() == two.keys() and all(torch.equal(one[k], two[k]) for k in one)


# -------------------------------------------------------------------------------------- loading


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


def test_image_size_replaces_resize_and_crop() -> None:
    preprocess = load_model(SMALL, "none", image_size=96).preprocess
    assert (preprocess.image_size, preprocess.resize) == (96, 96)
    preprocess = load_model(f"{__name__}:build_with_preprocess", image_size=32).preprocess
    assert (preprocess.image_size, preprocess.resize, preprocess.interpolation) == (
        32, 32, "bicubic",
    )  # fmt: skip


def test_factories() -> None:
    plain = load_model(FACTORY)
    assert plain.preprocess == Preprocess(image_size=224, resize=224)
    assert load_model(FACTORY, "none", image_size=40).preprocess.image_size == 40
    assert load_model(FACTORY).fingerprint == plain.fingerprint  # seeded
    given = load_model(f"{__name__}:build_with_preprocess")
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


def test_fingerprint_sees_every_parameter_and_buffer() -> None:
    first = load_model(FACTORY).fingerprint
    assert load_model(f"{__name__}:build_with_preprocess").fingerprint != first  # another name
    from psi_engine.models import state_fingerprint

    net = Net()
    seen = {state_fingerprint(net, "net")}
    for tensor in net.state_dict().values():
        flat = tensor.view(-1)
        flat[-1] = flat[-1] + 1
        seen.add(state_fingerprint(net, "net"))
    assert len(seen) == 1 + len(net.state_dict())
    assert state_fingerprint(net.double(), "net") not in seen


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnet5O", r"unknown model 'resnet5O'; expected one of resnet50, "),
        ("timm:resnt18", r"unknown timm model 'resnt18'; expected one of resnet18, "),
        ("timm:resnet18.nope", "unknown timm weights 'resnet18.nope'"),
        ("zzzz", "unknown model 'zzzz'; expected a torchvision classifier, timm:NAME, or"),
        ("mobilenetv5_base", "expected timm:mobilenetv5_base"),
        ("nowhere.models:make", "no module 'nowhere' for 'nowhere.models:make'"),
        (f"{__name__}:biuld", "has no factory 'biuld'; expected one of build"),
        (f"{__name__}:SMALL", "has no factory 'SMALL'"),
        (f"{__name__}:build_nonsense", "did not return a model; got str, int; expected an nn.Mod"),
    ],
)
def test_unknown_models(name: str, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        load_model(name)


def test_a_module_that_fails_to_import(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "psi_broken_a.py").write_text("1 / 0\n")
    (tmp_path / "psi_broken_b.py").write_text("import psi_missing_dependency\n")
    with pytest.raises(ModelError, match="fails when it is imported; got ZeroDivisionError"):
        load_model("psi_broken_a:make")
    with pytest.raises(EncoderError, match="cannot be imported; got No module named 'psi_missing"):
        import_factory("psi_broken_b:make", EncoderError)


# -------------------------------------------------------------------------------------- weights


def bare(state: dict[str, Any]) -> Any:
    return state


WRAPPED: list[Callable[[dict[str, Any]], Any]] = [
    bare,
    lambda s: {"state_dict": s, "epoch": 3},
    lambda s: {"model": {f"module.{k}": v for k, v in s.items()}},
    lambda s: {f"_orig_mod.{k}": v for k, v in s.items()},
    lambda s: {f"module._orig_mod.{k}": v for k, v in s.items()},
    lambda s: {k: v for k, v in s.items() if not k.endswith("num_batches_tracked")},
]


@pytest.mark.parametrize("wrap", WRAPPED)
def test_weights_from_a_torch_file(wrap: Callable[[dict[str, Any]], Any], tmp_path: Path) -> None:
    net, file = Net(), tmp_path / "net.pth"
    torch.save(wrap(net.state_dict()), file)
    loaded = load_model(FACTORY, str(file))
    assert states_equal(loaded.module, net)
    assert loaded.weights == str(file)


def test_weights_from_safetensors_are_widened(tmp_path: Path) -> None:
    net, file = Net(), tmp_path / "net.safetensors"
    half = {k: v.half() if v.is_floating_point() else v for k, v in net.state_dict().items()}
    save_file(half, file)
    loaded = load_model(FACTORY, str(file)).module
    assert all(p.dtype == torch.float32 for p in loaded.parameters())
    assert torch.equal(loaded.state_dict()["head.weight"], half["head.weight"].float())


def test_a_torchvision_file_keeps_the_categories(tmp_path: Path) -> None:
    net, file = zoo.shufflenet_v2_x0_5(weights=None), tmp_path / "net.safetensors"
    save_file(net.state_dict(), file)
    loaded = load_model(SMALL, str(file))
    assert states_equal(loaded.module, net)
    assert loaded.categories is not None
    assert loaded.categories[1] == "goldfish"
    assert len(loaded.categories) == 1000


class Payload:
    """Would create a file if it were unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (str(self.path), "w")


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda f: None, "no weights file .*net.pth; expected default, none, or a .pth"),
        (lambda f: f.write_bytes(b"text"), "cannot be read as weights"),
        (lambda f: f.write_bytes(b""), "cannot be read as weights; got EOFError"),
        (
            lambda f: f.write_bytes(pickle.dumps(Payload(f.with_name("ran")))),
            "something else than tensors, which is not unpickled for safety",
        ),
        (lambda f: torch.save([1, 2], f), "holds no state dict; got list"),
        (lambda f: torch.save({"epoch": 3}, f), "holds no state dict; got dict"),
        (
            lambda f: torch.save(Net(width=7).state_dict(), f),
            r"another architecture than .*got 7 of another shape \(block1.0.weight "
            r"\(7, 3, 3, 3\) for \(4, 3, 3, 3\), ",
        ),
        (
            lambda f: torch.save(zoo.shufflenet_v2_x0_5(weights=None).state_dict(), f),
            r"got 12 missing \(block1.0.weight, .*, …\); \d+ unexpected \(conv1.0.weight, ",
        ),
    ],
)
def test_bad_weights(write: Callable[[Path], Any], message: str, tmp_path: Path) -> None:
    file = tmp_path / "net.pth"
    write(file)
    with pytest.raises(ModelError, match=message):
        load_model(FACTORY, str(file))
    assert not (tmp_path / "ran").exists()


def test_a_broken_safetensors_file(tmp_path: Path) -> None:
    file = tmp_path / "net.safetensors"
    file.write_bytes(b"\xff" * 40)
    with pytest.raises(ModelError, match="cannot be read as weights; got SafetensorError"):
        load_model(FACTORY, str(file))


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


def test_real_weights(shared: Path) -> None:
    file = str(shared / "weights" / "resnet18_imagenet_quantised.safetensors")
    loaded = load_model("resnet18", file)
    assert loaded.categories is not None
    assert loaded.categories[1] == "goldfish"
    with pytest.raises(ModelError, match="another architecture than resnet34; got 80 missing"):
        load_model("resnet34", file)


# ------------------------------------------------------------------------- layers and channels


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
