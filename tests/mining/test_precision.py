"""Arithmetics of the forward pass: what runs, what is refused, what each gives."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from psi_engine.errors import DeviceError, InputError
from psi_engine.hooks import as_maps
from psi_engine.mining import mine
from psi_engine.mining.precision import arithmetic, exact_fp32, require_precision
from tests.mining.test_miner import assert_brute_force, assert_same
from tests.mining.test_stream import config, images, net

HALVES = {"fp16": torch.float16, "bf16": torch.bfloat16}


@pytest.mark.parametrize("precision", HALVES)
def test_half_precision_is_autocast_mined_exactly(precision: str) -> None:
    """The miner ranks what autocast puts out, by brute force over the widened values."""
    module, x = net().eval(), images(32)
    c = config(precision=precision)
    found = mine(module, TensorDataset(x), ["maps", "flat"], c, device="cpu")
    outputs: dict[str, list[Tensor]] = {"maps": [], "flat": []}
    for name, kept in outputs.items():
        module.get_submodule(name).register_forward_hook(lambda _, __, y, k=kept: k.append(y))
    with torch.inference_mode(), torch.autocast("cpu", HALVES[precision]):
        for part in x.split(16):
            module(part.contiguous(memory_format=torch.channels_last))
    assert outputs["maps"][0].dtype == HALVES[precision]
    for name, kept in outputs.items():
        maps = as_maps(torch.cat(kept), found[name].shape)
        assert_brute_force(found[name], maps, list(range(32)), c, name)


@pytest.mark.parametrize("precision", HALVES)
def test_loading_changes_nothing_in_half_precision(precision: str) -> None:
    data = TensorDataset(images(40))
    expected = mine(net(), data, ["maps", "tokens"], config(precision=precision))
    again = mine(net(), data, ["maps", "tokens"], config(precision=precision, batch_size=3))
    for layer in expected:
        assert_same(again[layer], expected[layer])


class Narrow(nn.Module):
    """Channel 0 moves by less than a step of 16 bits around 1000; channel 1 is all negative."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 2, 1)
        with torch.no_grad():
            self.conv.weight[:] = 1e-3
            self.conv.bias[:] = torch.tensor([1000.0, -50.0])

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_narrow_ranges_tie_in_half_precision_and_stay_in_order(precision: str) -> None:
    """Whole channels tie in 16 bits: the ties go by the site, no slot is invented."""
    found = mine(Narrow(), TensorDataset(images(20)), ["conv"], config(precision=precision))
    top = found["conv"].top
    assert top.values[0].unique().numel() == 1
    assert top.image_ids[0].tolist() == list(range(6))
    assert (top.values[1] < 0).all()
    assert (top.image_ids >= 0).all()


def test_exact_fp16_mines_narrow_ranges_as_fp32_does() -> None:
    data = TensorDataset(images(60))
    notes: list[str] = []
    expected = mine(Narrow(), data, ["conv"], config())
    found = mine(Narrow(), data, ["conv"], config(precision="exact-fp16"), notes=notes)
    for kind in ("top", "bottom"):
        for x, y in zip(getattr(found["conv"], kind), getattr(expected["conv"], kind), strict=True):
            assert torch.equal(x, y)
    assert "mined in fp32 from all images" in notes[0]


def test_tf32_is_refused_without_it() -> None:
    with pytest.raises(DeviceError, match=r"no TF32.*device cpu.*--precision fp32"):
        require_precision("tf32", torch.device("cpu"))
    with pytest.raises(DeviceError, match="no TF32"):
        mine(net(), TensorDataset(images(4)), ["maps"], config(precision="tf32"), device="cpu")
    require_precision("bf16", torch.device("cpu"))


def test_unknown_precision_is_refused() -> None:
    with pytest.raises(InputError, match="exact-fp16"):
        config(precision="fp8")


def test_switches_are_set_and_put_back() -> None:
    conv, matmul = torch.backends.cudnn.conv, torch.backends.cuda.matmul
    before = conv.fp32_precision, matmul.fp32_precision
    with arithmetic("tf32", torch.device("cpu")):
        assert conv.fp32_precision == matmul.fp32_precision == "tf32"
        with exact_fp32():
            assert conv.fp32_precision == matmul.fp32_precision == "ieee"
    assert (conv.fp32_precision, matmul.fp32_precision) == before
    with pytest.raises(ZeroDivisionError), arithmetic("fp16", torch.device("cpu")):
        assert torch.is_autocast_enabled("cpu")
        1 / 0  # noqa: B018
    assert not torch.is_autocast_enabled("cpu")
