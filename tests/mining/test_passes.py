"""Layers in one pass or many: the same bits, within the memory asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, TensorDataset

from psi_engine.config import MineConfig, Precision
from psi_engine.errors import CorruptDataError, InputError
from psi_engine.mining import mine, stream
from psi_engine.mining.miner import Miner
from psi_engine.mining.passes import buffer_bytes, layer_passes, working_bytes
from psi_engine.types import ActivationShape
from tests.mining.test_miner import assert_same
from tests.mining.test_stream import config, images, kept_in, net

CPU = torch.device("cpu")


def shapes(*channels: int) -> dict[str, ActivationShape]:
    return {f"l{i}": ActivationShape("map", c, (4, 4)) for i, c in enumerate(channels)}


def test_buffers_are_estimated_from_above_and_not_by_far() -> None:
    for precision in ("fp32", "exact-fp16"):
        c = MineConfig(precision=precision)
        shape = ActivationShape("map", 64, (4, 4))
        held = sum(x.nbytes for x in Miner("l", shape, c).state_dict().values())
        assert held <= buffer_bytes(shape, c) <= 1.5 * held


def test_layers_fill_passes_in_their_order() -> None:
    c = MineConfig(memory=1 << 20)
    every = shapes(128, 128, 128, 128)
    own, room = buffer_bytes(every["l0"], c), working_bytes(every["l0"], 16)
    assert 2 * own + room > 1 << 20 > own + room
    assert layer_passes(every, c, CPU, 16) == [[name] for name in every]
    assert layer_passes(every, MineConfig(memory=8 << 20), CPU, 16) == [list(every)]
    # working room is shared, buffers add up
    tight = MineConfig(memory=2 * own + room)
    assert [len(part) for part in layer_passes(every, tight, CPU, 16)] == [2, 2]


def test_fewer_channels_need_less() -> None:
    every = shapes(256, 256)
    few = {name: torch.arange(4) for name in every}
    c = MineConfig(memory=5 << 19, pool=64)
    assert len(layer_passes(every, c, CPU, 16)) == 2
    assert len(layer_passes(every, c, CPU, 16, few)) == 1


def test_a_layer_that_fits_nowhere_is_refused() -> None:
    with pytest.raises(InputError, match=r"mining of l1.*1,048,576 bytes.*--memory"):
        layer_passes(shapes(16, 4096), MineConfig(memory=1 << 20), CPU, 16)
    with pytest.raises(InputError, match="memory is too small"):
        MineConfig(memory=1)


class Deep(nn.Module):
    """48 blocks with long names."""

    def __init__(self, depth: int = 48) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.blocks = nn.ModuleDict(
                {f"a_rather_long_name_of_a_block_of_the_network_{i:02d}": nn.Conv2d(3, 3, 3, 1, 1)
                 for i in range(depth)}
            )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks.values():
            x = x + block(x).relu_()
        return x


def test_48_layers_in_one_pass_or_many_are_the_same() -> None:
    data, pattern = TensorDataset(images(24)), ["blocks.*"]
    sizes = {"pool": 16, "top_k": 4, "bottom_k": 2, "reservoir": 2}
    whole = mine(Deep(), data, pattern, config(**sizes))
    assert len(whole) == 48
    cut = mine(Deep(), data, pattern, config(**sizes, memory=1 << 20), checkpoint_every=16)
    for name in whole:
        assert_same(cut[name], whole[name])


@pytest.fixture
def one_layer_a_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "psi_engine.mining.stream.layer_passes", lambda shapes, *_: [[name] for name in shapes]
    )


@pytest.mark.parametrize("precision", ["fp32", "bf16", "exact-fp16"])
@pytest.mark.usefixtures("one_layer_a_pass")
def test_many_passes_change_nothing(precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data, layers = TensorDataset(images(45)), ["maps", "tokens", "flat"]
    told: list[tuple[str, int, int]] = []
    cut = mine(
        net(), data, layers, config(precision=precision), checkpoint_every=20,
        progress=lambda *step: told.append(step),
    )  # fmt: skip
    monkeypatch.undo()
    whole = mine(net(), data, layers, config(precision=precision))
    for name in whole:
        assert_same(cut[name], whole[name])
    mining = [done for what, done, _ in told if what == "mining"]
    assert mining == sorted(mining)
    assert mining[-1] == 45


@pytest.mark.usefixtures("one_layer_a_pass")
def test_continued_amid_many_passes() -> None:
    data, layers, saved = TensorDataset(images(70)), ["maps", "flat"], []
    whole = mine(net(), data, layers, config(), checkpoint=kept_in(saved), checkpoint_every=32)
    assert [int(state["position"]) for state in saved] == [32, 64, 70]
    for state in saved:
        again = mine(net(), data, layers, config(), state=state)
        for name in whole:
            assert_same(again[name], whole[name])


def test_a_pass_runs_no_further_than_its_last_layer(one_layer_a_pass: None) -> None:
    calls = {"maps": 0, "flat": 0}
    module = net()
    for name in calls:

        def count(*_: object, name: str = name) -> None:
            calls[name] += 1

        module.get_submodule(name).register_forward_pre_hook(count)
    mine(module, TensorDataset(images(32)), ["maps", "flat"], config())
    # each layer once for the shapes and once to count; then 2 batches in each pass that needs it
    assert calls["maps"] - calls["flat"] >= 2


@pytest.mark.slow
def test_a_whole_network_within_bounded_memory(tmp_path: Path) -> None:
    torchvision = pytest.importorskip("torchvision", reason="torchvision is a dependency")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = torchvision.models.resnet50(weights=None)
    data, stages = TensorDataset(images(20, 64)), ["layer[1-4]", "layer[1-4].*.conv?"]
    c = config(top_k=4, bottom_k=2, reservoir=2)
    whole = mine(module, data, stages, c)
    cut = mine(module, data, stages, config(top_k=4, bottom_k=2, reservoir=2, memory=48 << 20))
    for name in whole:
        assert_same(cut[name], whole[name])


class Breaking(Dataset[Any]):
    """Image 30 can be read so many times."""

    def __init__(self, times: int) -> None:
        self.images, self.left = images(40), times

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Tensor:
        if index == 30:
            self.left -= 1
            if self.left < 0:
                raise OSError("image file is truncated")
        return self.images[index]


@pytest.mark.parametrize("precision", ["fp32", "exact-fp16"])
def test_an_image_that_breaks_between_passes_is_refused(
    precision: Precision, monkeypatch: pytest.MonkeyPatch
) -> None:
    every = ["maps.0", "maps.1"]
    monkeypatch.setattr(stream, "layer_passes", lambda *given: [[name] for name in every])
    options = config(precision=precision)
    skipped: dict[int, str] = {}
    mine(net(), Breaking(0), every, options, skipped=skipped)
    assert skipped == {30: "image file is truncated"}
    with pytest.raises(CorruptDataError, match="readable in an earlier pass.*got 30: image file"):
        mine(net(), Breaking(1), every, options)
