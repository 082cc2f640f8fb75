"""Mining whole networks: exact, whatever the loading, the interruption or the broken files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from psi_engine.config import MineConfig
from psi_engine.data import Preprocess
from psi_engine.errors import DataError, DeviceError, InputError, ModelError
from psi_engine.hooks import as_maps, capture
from psi_engine.mining import MICRO_BATCH, dead_channels, mine
from psi_engine.models import LoadedModel
from tests.mining.test_miner import assert_brute_force, assert_same

PREPROCESS = Preprocess(16, 16)


class Net(nn.Module):
    """Maps, tokens and a flat output, in seconds."""

    def __init__(self) -> None:
        super().__init__()
        self.maps = nn.Sequential(
            nn.Conv2d(3, 5, 3, padding=1, stride=2), nn.BatchNorm2d(5), nn.ReLU(inplace=True)
        )
        self.tokens = nn.Linear(5, 4)
        self.flat = nn.Linear(4, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.flat(self.tokens(self.maps(x).flatten(2).transpose(1, 2)).mean(1))


def net() -> Net:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Net()


def images(n: int = 45, side: int = 16) -> Tensor:
    return torch.randn(n, 3, side, side, generator=torch.Generator().manual_seed(0))


def kept_in(saved: list[dict[str, Tensor]]) -> Callable[[dict[str, Tensor]], None]:
    """Keep each saved state as it is then."""
    return lambda state: saved.append({name: x.clone() for name, x in state.items()})


def config(**changes) -> MineConfig:
    return MineConfig(
        **({"top_k": 6, "bottom_k": 4, "reservoir": 5, "pool": 30, "batch_size": 8} | changes)
    )


def folder(path: Path, n: int = 40, broken: tuple[int, ...] = ()) -> Path:
    rng = np.random.default_rng(0)
    for i in range(n):
        file = path / f"{i:03d}.png"
        Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(file)
        if i in broken:
            file.write_bytes(file.read_bytes()[:60])
    return path


def activations(module: nn.Module, layer: str, x: Tensor, shape) -> Tensor:
    """Activations in the same micro-batches, every one padded by hand."""
    rows, size = [], MICRO_BATCH["cpu"]
    with torch.inference_mode(), capture(module.eval(), [layer]) as outputs:
        for part in x.split(size):
            padded = torch.cat([part, torch.zeros(size - len(part), *x.shape[1:])])
            module(padded.contiguous(memory_format=torch.channels_last))
            rows.append(as_maps(outputs[layer], shape)[: len(part)])
    return torch.cat(rows)


@pytest.mark.parametrize("sites", ["per-image", "all"])
def test_every_kind_of_layer_equals_brute_force(sites: str) -> None:
    module, x = net(), images()
    c = config(sites=sites)
    found = mine(module, TensorDataset(x), ["maps", "tokens", "flat"], c, device="cpu")
    assert list(found) == ["maps", "tokens", "flat"]
    assert [found[l].shape.grid for l in found] == [(8, 8), (64, 1), (1, 1)]
    for layer, result in found.items():
        maps = activations(module, layer, x, result.shape)
        assert_brute_force(result, maps, list(range(len(x))), c, layer)


@pytest.mark.parametrize("sites", ["per-image", "all"])
def test_a_real_network_equals_brute_force(sites: str) -> None:
    torchvision = pytest.importorskip("torchvision", reason="torchvision is a dependency")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = torchvision.models.resnet18(weights=None)
    x, c = images(21, 32), config(sites=sites)
    chosen = torch.arange(0, 256, 16)
    found = mine(module, TensorDataset(x), ["layer3"], c, channels={"layer3": chosen})["layer3"]
    maps = activations(module, "layer3", x, found.shape)[:, chosen]
    assert_brute_force(found, maps, list(range(len(x))), c, "layer3")


@pytest.mark.parametrize(
    ("batch_size", "workers"), [(1, 0), (40, 0), pytest.param(7, 2, marks=pytest.mark.slow)]
)
def test_loading_changes_nothing(tmp_path: Path, batch_size: int, workers: int) -> None:
    path = folder(tmp_path)
    model = LoadedModel("net", net(), PREPROCESS, None, "none", "0")
    expected = mine(model, path, ["maps", "flat"], config())
    again = mine(model, path, ["maps", "flat"], config(batch_size=batch_size), workers=workers)
    for layer in expected:
        assert_same(again[layer], expected[layer])


def test_views_are_asked_for_on_the_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The loader, not the sweep, copies: only it does so ahead and from pinned memory."""
    from psi_engine.mining import sweep

    asked: list[object] = []

    def spying(*args, **options):
        asked.append(options["device"])
        return loaded(*args, **options)

    loaded = sweep.batches
    monkeypatch.setattr(sweep, "batches", spying)
    mine(net(), folder(tmp_path), ["maps"], config(), preprocess=PREPROCESS, device="cpu")
    assert asked == [torch.device("cpu")]


def test_neighbours_in_the_batch_change_nothing() -> None:
    """Dropping images leaves every other image's activations as they were, to the bit."""
    x = images()
    whole = mine(net(), TensorDataset(x), ["maps"], config(top_k=45))["maps"]
    part = mine(net(), TensorDataset(x[3:]), ["maps"], config(top_k=45))["maps"]
    for c in range(5):
        known = {
            (i, u, v): a
            for a, i, u, v in zip(*(part_[c].tolist() for part_ in whole.top), strict=True)
        }
        for a, i, u, v in zip(*(part_[c].tolist() for part_ in part.top), strict=True):
            if i >= 0:
                assert known[i + 3, u, v] == a


def test_stopped_and_continued_gives_the_same_bits(tmp_path: Path) -> None:
    path = folder(tmp_path, 75, broken=(1, 17, 60))
    model = LoadedModel("net", net(), PREPROCESS, None, "none", "0")
    skipped: dict[int, str] = {}
    expected = mine(model, path, ["maps", "tokens"], config(), skipped=skipped)
    assert sorted(skipped) == [1, 17, 60]

    class Killed(Exception):
        pass

    saved: list[dict[str, Tensor]] = []

    def kill_at_second(state: dict[str, Tensor]) -> None:
        kept_in(saved)(state)
        if len(saved) == 2:
            raise Killed

    with pytest.raises(Killed):
        mine(
            model,
            path,
            ["maps", "tokens"],
            config(),
            checkpoint=kill_at_second,
            checkpoint_every=20,
        )
    positions = [int(state["position"]) for state in saved]
    assert positions == [34, 67]  # two micro-batches each, over the broken images
    for state in saved:
        assert all(isinstance(x, Tensor) and x.device.type == "cpu" for x in state.values())
        resumed: dict[int, str] = {}
        again = mine(
            model, path, ["maps", "tokens"], config(batch_size=5), state=state, skipped=resumed
        )
        for layer in expected:
            assert_same(again[layer], expected[layer])
        assert resumed == skipped


def test_a_finished_state_needs_no_images() -> None:
    saved: list[dict[str, Tensor]] = []
    data = TensorDataset(images(32))
    expected = mine(net(), data, ["maps"], config(), checkpoint=kept_in(saved), checkpoint_every=1)
    assert [int(state["position"]) for state in saved] == [16, 32]
    assert_same(mine(net(), data, ["maps"], config(), state=saved[-1])["maps"], expected["maps"])


def test_broken_images_keep_the_others_ids(tmp_path: Path) -> None:
    path = folder(tmp_path, broken=(0, 5))
    model = LoadedModel("net", net(), PREPROCESS, None, "none", "0")
    found = mine(model, path, ["maps"], config(top_k=50))["maps"]
    assert found.images == 38
    assert sorted(found.image_ids[0][:38].tolist()) == [i for i in range(40) if i not in (0, 5)]
    assert (found.image_ids[:, 38:] == -1).all()


def test_images_and_tensors_agree(tmp_path: Path) -> None:
    path = folder(tmp_path)
    from psi_engine.data import open_source

    source = open_source(path)
    x = PREPROCESS.normalise(torch.stack([source.view(i, PREPROCESS) for i in range(40)]))
    by_path = mine(net(), path, ["maps"], config(), preprocess=PREPROCESS)["maps"]
    assert_same(by_path, mine(net(), TensorDataset(x), ["maps"], config())["maps"])


def test_padding_is_never_mined() -> None:
    found = mine(net(), TensorDataset(images(17)), ["maps"], config())["maps"]
    assert found.images == 17
    assert found.stats.count.tolist() == [17 * 64] * 5


def test_the_model_is_left_as_it_was() -> None:
    module = net().train()
    module.flat.eval()
    before = {name: x.clone() for name, x in module.state_dict().items()}
    flags = torch.backends.cudnn.conv.fp32_precision, torch.backends.cudnn.deterministic
    mine(module, TensorDataset(images(5)), ["maps"], config())
    assert module.training
    assert module.maps.training
    assert not module.flat.training
    assert not module.maps[0]._forward_hooks
    for name, x in module.state_dict().items():
        assert torch.equal(x, before[name])
    assert flags == (
        torch.backends.cudnn.conv.fp32_precision,
        torch.backends.cudnn.deterministic,
    )


def test_convolutions_run_in_ieee_float32() -> None:
    seen: list[str] = []

    class Asks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Identity()

        def forward(self, x: Tensor) -> Tensor:
            seen.append(torch.backends.cudnn.conv.fp32_precision)
            seen.append(torch.backends.cuda.matmul.fp32_precision)
            return self.layer(x)

    mine(Asks(), TensorDataset(images(4)), ["layer"], config())
    assert set(seen) == {"ieee"}


def test_progress_reaches_the_end(tmp_path: Path) -> None:
    path = folder(tmp_path, broken=(39,))
    told: list[tuple[str, int, int]] = []
    mine(
        net(),
        path,
        "maps",
        config(),
        preprocess=PREPROCESS,
        progress=lambda *step: told.append(step),
    )
    assert [done for _, done, _ in told] == [16, 32, 39, 40]
    assert {(what, total) for what, _, total in told} == {("mining", 40)}


def test_dead_channels_are_found() -> None:
    module = net()
    with torch.no_grad():
        module.maps[1].weight[2] = 0
        module.maps[1].bias[2] = -1
    found = mine(module, TensorDataset(images()), ["maps"], config())["maps"]
    assert dead_channels(found.stats).tolist() == [False, False, True, False, False]


def test_results_can_be_changed_in_place() -> None:
    found = mine(net(), TensorDataset(images(20)), ["maps"], config())["maps"]
    for part in (*found.top, *found.pool, *vars(found.stats).values()):
        part += 1  # tensors of inference mode would refuse


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"layers": ["map"]}, ModelError, "maps"),
        ({"channels": {"maps": torch.tensor([5])}}, InputError, "from 0 to 4"),
        ({"channels": {"flat": torch.tensor([0])}}, InputError, "not mined"),
        ({"state": {}}, InputError, "no position"),
        ({"state": {"position": torch.tensor(99), "skipped": torch.tensor([])}}, InputError, "99"),
        ({"device": "nowhere"}, DeviceError, "nowhere"),
    ],
)
def test_bad_input_is_refused(changes: dict, error: type[Exception], message: str) -> None:
    arguments = {"layers": ["maps"], **changes}
    with pytest.raises(error, match=message):
        mine(net(), TensorDataset(images()), arguments.pop("layers"), config(), **arguments)


def test_images_need_a_preprocess(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="pass preprocess"):
        mine(net(), folder(tmp_path, 4), ["maps"], config())


def test_a_source_with_no_readable_image_is_refused(tmp_path: Path) -> None:
    path = folder(tmp_path, 4, broken=(0, 1, 2, 3))
    with pytest.raises(DataError, match="none of the 4 images"):
        mine(net(), path, ["maps"], config(), preprocess=PREPROCESS)
