"""Weights from everywhere, and their fingerprint."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torchvision import models as zoo

from psi_engine.errors import ModelError
from psi_engine.models import (
    load_model,
)
from tests.models.nets import FACTORY, NETS, SMALL, Net, states_equal


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


def test_real_weights(shared: Path) -> None:
    file = str(shared / "weights" / "resnet18_imagenet_quantised.safetensors")
    loaded = load_model("resnet18", file)
    assert loaded.categories is not None
    assert loaded.categories[1] == "goldfish"
    with pytest.raises(ModelError, match="another architecture than resnet34; got 80 missing"):
        load_model("resnet34", file)


def test_fingerprint_sees_every_parameter_and_buffer() -> None:
    first = load_model(FACTORY).fingerprint
    assert load_model(f"{NETS}:build_with_preprocess").fingerprint != first  # another name
    from psi_engine.models import state_fingerprint

    net = Net()
    seen = {state_fingerprint(net, "net")}
    for tensor in net.state_dict().values():
        flat = tensor.view(-1)
        flat[-1] = flat[-1] + 1
        seen.add(state_fingerprint(net, "net"))
    assert len(seen) == 1 + len(net.state_dict())
    assert state_fingerprint(net.double(), "net") not in seen
