"""exact-fp16 gives fp32's extremes, as far as its certificate holds; the rest is mined again."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from psi_engine.config import MineConfig
from psi_engine.data import CorruptImage, ImageSource, open_source
from psi_engine.errors import CorruptDataError
from psi_engine.mining import Miner, mine, refine, stream
from psi_engine.types import LayerSites
from tests.mining.test_miner import assert_same
from tests.mining.test_stream import images, kept_in


def config(precision: str = "exact-fp16", **changes) -> MineConfig:
    sizes = {"top_k": 4, "bottom_k": 4, "reservoir": 5, "pool": 30, "batch_size": 32} | changes
    return MineConfig(precision=precision, **sizes)


def assert_same_extremes(found: LayerSites, expected: LayerSites) -> None:
    for kind in ("top", "bottom", "pool"):
        for x, y in zip(getattr(found, kind), getattr(expected, kind), strict=True):
            torch.testing.assert_close(x, y, rtol=0, atol=0, equal_nan=True)
    for name in ("image_ids", "u", "v"):
        assert torch.equal(getattr(found.random, name), getattr(expected.random, name))
    for name in ("minimum", "maximum", "count"):
        assert torch.equal(getattr(found.stats, name), getattr(expected.stats, name)), name
    torch.testing.assert_close(found.stats.mean, expected.stats.mean, rtol=0.01, atol=1e-3)


class Wide(nn.Module):
    """Eight channels of plain convolutions; nothing ties."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(1)
            self.a = nn.Conv2d(3, 8, 3, stride=2)
            self.b = nn.Conv2d(8, 8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x).relu())


@pytest.fixture
def few_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(refine, "SAMPLE", 16)


@pytest.mark.usefixtures("few_compared")
def test_only_images_that_were_mined_are_sampled(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Tensor] = []
    original = refine.Refinement._sample
    monkeypatch.setattr(
        refine.Refinement, "_sample", lambda self: drawn.append(original(self)) or drawn[-1]
    )
    data, states = TensorDataset(images(300)), []
    options = {"layers": ["a"], "config": config()}
    mine(Wide(), data, indices=torch.arange(40, 70), checkpoint=kept_in(states), **options,
         checkpoint_every=16)  # fmt: skip
    mine(Wide(), data, indices=torch.arange(40, 70), state=states[0], **options)
    state = {**states[0], "position": torch.tensor(0)}
    mine(Wide(), data, indices=torch.arange(60, 90), inherited=torch.arange(40, 56), state=state,
         **options)  # fmt: skip
    found = [set(wanted.nonzero().flatten().tolist()) for wanted in drawn]
    assert [len(x) for x in found] == [16] * 3
    assert found[0] == found[1] <= set(range(40, 70))
    assert found[2] <= {*range(40, 56), *range(60, 90)}
    assert found[2] & set(range(40, 56))


@pytest.mark.parametrize("sites", ["per-image", "all"])
@pytest.mark.usefixtures("few_compared")
def test_extremes_are_those_of_fp32(sites: str) -> None:
    data, notes = TensorDataset(images(400)), []
    expected = mine(Wide(), data, ["a", "b"], config("fp32", sites=sites))
    found = mine(Wide(), data, ["a", "b"], config(sites=sites), notes=notes)
    low = mine(Wide(), data, ["a", "b"], config("fp16", sites=sites))
    for layer in expected:
        assert_same_extremes(found[layer], expected[layer])
    # fp16 alone has other values, so the fp32 pass did happen
    assert not torch.equal(low["b"].top.values, expected["b"].top.values)
    assert notes[0].startswith("exact-fp16: ")
    assert "of 16 channels certified by 2K" in notes[0]


@pytest.mark.usefixtures("few_compared")
def test_only_candidates_run_again_where_all_is_certified() -> None:
    data, notes = TensorDataset(images(400)), []
    one = {"a": torch.tensor([2])}
    expected = mine(Wide(), data, ["a"], config("fp32"), channels=one)["a"]
    found = mine(Wide(), data, ["a"], config(), channels=one, notes=notes)["a"]
    assert_same_extremes(found, expected)
    assert "1 of 1 channels certified by 2K; " in notes[0]
    run = int(notes[0].split("; ")[1].split()[0])
    assert run <= 16 + 2 * 8  # the sample and 2K candidates at each end


class Tied(nn.Module):
    """Two layers; the second is 0 in all but a few images, so its cut is mined from all."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.relu = Wide().a, nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.a(x) - 2.4)


@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.usefixtures("few_compared")
def test_a_killed_refinement_goes_on_where_it_was_saved(
    apart: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if apart:
        monkeypatch.setattr(stream, "layer_passes", lambda shapes, *_: [[name] for name in shapes])
    data, saved, notes, layers = TensorDataset(images(150)), [], [], ["a", "relu"]
    steps = []
    options = {"config": config(), "checkpoint_every": 32}
    whole = mine(
        Tied(), data, layers, checkpoint=kept_in(saved), notes=notes,
        progress=lambda what, done, total: steps.append(what), **options,
    )  # fmt: skip
    expected = mine(Tied(), data, layers, config("fp32"))
    amid = [state for state in saved if "refining:facts" in state]
    assert len(amid) >= 4
    run = []
    for state in amid:
        assert int(state["position"]) == 150
        again, said = [], []
        found = mine(
            Tied(), data, layers, state=state, notes=said,
            progress=lambda what, *_, again=again: again.append(what), **options,
        )  # fmt: skip
        for layer in layers:
            assert_same(found[layer], whole[layer])
            assert_same_extremes(found[layer], expected[layer])
        assert said == notes
        run.append(again.count("refining"))
    assert "mining" not in again
    assert run == sorted(run, reverse=True)  # the later it was saved, the less is left
    assert run[0] < steps.count("refining")
    assert run[-1] == 0


@pytest.mark.usefixtures("few_compared")
def test_what_was_saved_of_other_images_is_refined_anew() -> None:
    data, saved = TensorDataset(images(150)), []
    first = torch.arange(100)
    options = {"config": config(), "checkpoint_every": 32}
    mine(Tied(), data, ["relu"], indices=first, checkpoint=kept_in(saved), **options)
    state = saved[-2] | {"position": torch.tensor(0)}
    found = mine(
        Tied(), data, ["relu"], state=state, indices=torch.arange(100, 150), inherited=first,
        **options,
    )  # fmt: skip
    assert_same_extremes(found["relu"], mine(Tied(), data, ["relu"], config("fp32"))["relu"])


@pytest.mark.parametrize("inherits", [False, True])
@pytest.mark.usefixtures("few_compared")
def test_images_gone_since_a_kill_are_refused(inherits: bool) -> None:
    """Skipped in the refinement, they would count in the statistics and be lost as extremes."""

    def source(*broken: int) -> ImageSource:
        opened = open_source(TensorDataset(images(150)))
        item = opened.item

        def read(index: int) -> Any:
            if index in broken:
                raise CorruptImage("gone")
            return item(index)

        opened.item = read
        return opened

    saved, options = [], {"config": config(), "checkpoint_every": 32}
    whole = mine(Wide(), source(3), ["a"], checkpoint=kept_in(saved), **options)["a"]
    best = int(whole.top.image_ids[0, 0])
    state = [x for x in saved if "refining:facts" not in x][-1]
    done = int(state["position"])
    assert best < done < 150
    if inherits:  # as a rank that goes on from another's part
        options |= {"indices": torch.arange(done, 150), "inherited": torch.arange(done)}
        state["position"] = torch.tensor(0)
    for broken in ((3, best), (best,)):
        with pytest.raises(CorruptDataError, match=f"no longer is; got {best}: gone; restore"):
            mine(Wide(), source(*broken), ["a"], state=state, **options)
    again = mine(Wide(), source(3), ["a"], state=state, **options)["a"]
    assert_same(again, whole)  # what was skipped before is no reason to stop


@pytest.mark.usefixtures("few_compared")
def test_ties_at_the_cut_are_mined_in_fp32() -> None:
    data, notes = TensorDataset(images(200)), []
    expected = mine(Tied(), data, ["relu"], config("fp32"))["relu"]
    assert (expected.top.values == 0).any()
    found = mine(Tied(), data, ["relu"], config(), notes=notes)["relu"]
    assert_same_extremes(found, expected)
    assert "mined in fp32 from all images; 200 of 200" in notes[0]


@pytest.mark.usefixtures("few_compared")
def test_overflow_in_fp16_is_mined_in_fp32() -> None:
    class Large(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 2, 1, bias=False)
            with torch.no_grad():
                self.conv.weight[0] = 3e4
                self.conv.weight[1] = 1.0

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(x)

    data = TensorDataset(images(60))
    low = mine(Large(), data, ["conv"], config("fp16"))["conv"]
    assert low.stats.nonfinite[0] > 0
    found = mine(Large(), data, ["conv"], config())["conv"]
    expected = mine(Large(), data, ["conv"], config("fp32"))["conv"]
    for kind in ("top", "bottom"):
        for x, y in zip(getattr(found, kind), getattr(expected, kind), strict=True):
            assert torch.equal(x, y)


def test_a_margin_within_the_error_is_no_certificate(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a huge factor nothing is certified, and the result is the same."""
    monkeypatch.setattr(refine, "SAFETY", 1e9)
    monkeypatch.setattr(refine, "SAMPLE", 4)
    data, notes = TensorDataset(images(100)), []
    found = mine(Wide(), data, ["b"], config(), notes=notes)["b"]
    assert_same_extremes(found, mine(Wide(), data, ["b"], config("fp32"))["b"])
    assert notes == [
        "exact-fp16: 0 of 8 channels certified by 2K, 0 of 8 channels certified by 4K, "
        "8 mined in fp32 from all images; 100 of 100 images in fp32"
    ]


class Apart(nn.Module):
    """The first channel less the second, whose own values do not show in it."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(2, 2, 1, bias=False)
        self.b = nn.Conv2d(2, 1, 1, bias=False)
        with torch.no_grad():
            self.a.weight.copy_(torch.eye(2)[..., None, None])
            self.b.weight.copy_(torch.tensor([1.0, -1.0])[None, :, None, None])

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x))


def test_the_certificate_is_an_estimate() -> None:
    """One image errs as no compared one does: it is missed, and the note says that it can be."""
    x = torch.rand(1000, 2, 1, 1, generator=torch.Generator().manual_seed(0))
    x[777] = torch.tensor([20007.0, 20000.0])[:, None, None]  # 20000 and 20000 in fp16
    data, notes = TensorDataset(x), []
    assert mine(Apart(), data, ["b"], config("fp32"))["b"].top.image_ids[0, 0] == 777
    found = mine(Apart(), data, ["b"], config(), notes=notes)["b"].top
    assert 777 not in found.image_ids
    assert "1 of 1 channels certified by 2K" in notes[0]
    assert notes[0].endswith("; certificates are estimated from the images compared, not proved")


@pytest.mark.usefixtures("few_compared")
def test_maps_that_wait_for_their_comparison_stay_within_the_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    data, groups, held = TensorDataset(images(200)), [], []
    measured, layers = refine.Refinement._held_together, ["a", "b"]
    expected = mine(Wide(), data, layers, config("fp32"))
    together = mine(Wide(), data, layers, config())

    def watched(self: refine.Refinement) -> list[list[str]]:
        groups.append(measured(self))
        return groups[-1]

    class Held(dict):  # type: ignore[type-arg]
        def __setitem__(self, layer: str, maps: Tensor) -> None:
            super().__setitem__(layer, maps)
            held.append(sum(x.numel() * 4 for x in self.values()))

    original = refine.Refinement.__init__

    def start(self: refine.Refinement, *given) -> None:
        original(self, *given)
        self._fp32 = Held()

    monkeypatch.setattr(refine.Refinement, "_held_together", watched)
    monkeypatch.setattr(refine.Refinement, "__init__", start)
    monkeypatch.setattr(refine, "memory_budget", lambda device, memory: 1)
    found = mine(Wide(), data, layers, config())
    assert groups[0] == [["a"], ["b"]]
    alone = max(held)
    held.clear()
    monkeypatch.setattr(refine, "memory_budget", lambda device, memory: 1 << 30)
    mine(Wide(), data, layers, config())
    assert groups[-1] != groups[0]
    assert max(held) > alone
    for layer in layers:
        assert_same_extremes(found[layer], expected[layer])
        assert_same_extremes(found[layer], together[layer])


@pytest.mark.usefixtures("few_compared")
def test_shards_refined_apart_merge_to_the_whole() -> None:
    data, parts = TensorDataset(images(200)), []

    def hand_over(miners):
        parts.append(miners["b"])
        return {}

    for indices in (torch.arange(70), torch.arange(70, 200)):
        mine(Wide(), data, ["b"], config(), indices=indices, finish=hand_over)
    parts[1].merge(parts[0])
    assert_same_extremes(parts[1].result(), mine(Wide(), data, ["b"], config("fp32"))["b"])


@pytest.mark.usefixtures("few_compared")
def test_continued_from_a_saved_state() -> None:
    data, saved = TensorDataset(images(200)), []
    expected = mine(Wide(), data, ["b"], config("fp32"))["b"]
    mine(Wide(), data, ["b"], config(), checkpoint=kept_in(saved), checkpoint_every=64)
    found = mine(Wide(), data, ["b"], config(), state=saved[1])["b"]
    assert_same_extremes(found, expected)


def test_wider_buffers_are_saved_and_cut_in_the_result() -> None:
    miner = Miner("b", mine(Wide(), TensorDataset(images(4)), ["b"])["b"].shape, config())
    assert miner.state_dict()["top.keys"].shape == (8, 16)
    assert miner.result().top.values.shape == (8, 4)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet18", "vit_b_32"])
def test_real_architectures(name: str, few_compared: None) -> None:
    torchvision = pytest.importorskip("torchvision", reason="torchvision is a dependency")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        size = {"image_size": 64} if name.startswith("vit") else {}
        module = getattr(torchvision.models, name)(weights=None, **size)
    layer = "layer3" if name == "resnet18" else "encoder.layers.encoder_layer_5"
    data = TensorDataset(images(120, 64))
    found = mine(module, data, [layer], config())[layer]
    assert_same_extremes(found, mine(module, data, [layer], config("fp32"))[layer])
