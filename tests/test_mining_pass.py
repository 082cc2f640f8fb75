"""The mining stage of a run: killed, continued by another number of ranks, cut into shards."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import TensorDataset

from psi_engine import artifacts, mining_pass
from psi_engine.data import open_source
from psi_engine.distributed import ALONE, World
from psi_engine.errors import DiskFullError, InputError, RunFolderError
from psi_engine.mining import mine
from psi_engine.mining.shelf import shelf
from psi_engine.mining_pass import PARTIAL, merge_shards, mine_images, mine_shard, work_of
from psi_engine.models import LoadedModel
from psi_engine.shards import told_aside
from psi_engine.types import Mined
from tests.distributed.threads import on_ranks
from tests.mining.test_miner import assert_same
from tests.mining.test_stream import PREPROCESS, config, images, net

LAYERS = ["maps", "flat"]
IMAGES = 150


_drawing = threading.Lock()
"""Random weights come from torch's global generator, which ranks that are threads share."""


class Killed(Exception):
    pass


def inputs(x: Tensor | None = None) -> Any:
    """What the stage asks of a run's inputs."""
    source = open_source(TensorDataset(images(IMAGES) if x is None else x))
    module = net()
    found = mine(module, TensorDataset(images(2)), LAYERS, config())
    return SimpleNamespace(
        identity={"model": "net", "weights": "w", "data": source.fingerprint},
        layers=LAYERS,
        shapes={name: found[name].shape for name in LAYERS},
        channels={"maps": torch.arange(5), "flat": torch.tensor([4, 1])},
        model=LoadedModel("net", module, PREPROCESS, None, "none", "0"),
        source=source,
        device=torch.device("cpu"),
    )


SETTINGS: Any = SimpleNamespace(mine=config(), workers=0, model="net", out=None)


@pytest.fixture(scope="module")
def whole() -> Mined:
    found = inputs()
    return mine(found.model, found.source, LAYERS, config(), channels=found.channels)


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mining_pass, "CHECKPOINT_IMAGES", 1)


def work_on(folder: Path, world: World = ALONE, die_at: int | None = None) -> Mined | None:
    """Mine as one rank; the process is gone when its images reach ``die_at``."""
    with _drawing:
        here = inputs()

    def progress(what: str, done: int, total: int) -> None:
        assert total == IMAGES
        if die_at is not None and done >= die_at:
            raise Killed

    found = mine_images(folder, work_of(SETTINGS, here), SETTINGS, here, progress, world)
    return None if found is None else found[0]


@pytest.mark.parametrize("sizes", [(1, 1), (3, 3), (4, 2), (1, 3, 2), (2, 4, 1)])
def test_killed_jobs_go_on_with_any_number_of_ranks(
    tmp_path: Path, whole: Mined, sizes: tuple[int, ...]
) -> None:
    for number, size in enumerate(sizes[:-1]):
        with pytest.raises(Killed):
            on_ranks(size, lambda world, at=75 + 65 * number: work_on(tmp_path, world, at))
        parts = mining_pass.take_stock(tmp_path / PARTIAL, work_of(SETTINGS, inputs()))
        assert sum(len(part.covered) for part in parts) >= 16 * (number + 1)
    found = on_ranks(sizes[-1], lambda world: work_on(tmp_path, world))[0]
    for layer in LAYERS:
        assert_same(found[layer], whole[layer])


def test_what_is_saved_is_not_mined_again(tmp_path: Path, whole: Mined) -> None:
    with pytest.raises(Killed):
        work_on(tmp_path, die_at=60)
    here, seen = inputs(), []
    original = here.source.item
    here.source.item = lambda index: seen.append(index) or original(index)
    found = mine_images(tmp_path, work_of(SETTINGS, here), SETTINGS, here)
    assert min(seen[1:]) == 48  # the first one only tells the layers' shapes
    assert_same(found[0]["maps"], whole["maps"])


def test_saved_parts_of_other_data_are_never_taken(tmp_path: Path) -> None:
    with pytest.raises(Killed):
        work_on(tmp_path, die_at=60)
    here = inputs(images(IMAGES + 1)[1:])
    found = mine_images(tmp_path, work_of(SETTINGS, here), SETTINGS, here)
    expected = mine(here.model, here.source, LAYERS, config(), channels=here.channels)
    assert_same(found[0]["maps"], expected["maps"])


def test_a_full_disk_is_told_and_what_was_saved_stays(
    tmp_path: Path, whole: Mined, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, written = artifacts.save_file, []

    def full(*args: Any, **kwargs: Any) -> None:
        if len(written) == 2:
            raise OSError(28, "No space left on device")
        written.append(original(*args, **kwargs))

    monkeypatch.setattr(artifacts, "save_file", full)
    with pytest.raises(DiskFullError, match="no room to write.*free some space, then give the"):
        work_on(tmp_path)
    monkeypatch.setattr(artifacts, "save_file", original)
    assert [path.suffix for path in (tmp_path / PARTIAL).iterdir()] == [".safetensors"]
    assert_same(work_on(tmp_path)["maps"], whole["maps"])


def test_saved_parts_made_otherwise_are_set_aside_and_told(
    tmp_path: Path, whole: Mined, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(Killed):
        work_on(tmp_path, die_at=60)
    threads = torch.get_num_threads
    monkeypatch.setattr(torch, "get_num_threads", lambda: 77)
    here = inputs()
    mined, _, notes = mine_images(tmp_path, work_of(SETTINGS, here), SETTINGS, here)
    assert_same(mined["maps"], whole["maps"])
    (note,) = notes
    assert "mining.set-aside" in note
    assert note.endswith("; now threads 77")
    (told,) = told_aside(tmp_path / PARTIAL)
    assert told["file"].startswith("mining.set-aside/")
    assert told["reason"] in note
    (aside,) = (tmp_path / "mining.set-aside").glob("*.safetensors")
    for path in (tmp_path / PARTIAL).iterdir():
        path.unlink()
    aside.rename(tmp_path / PARTIAL / "put-back.safetensors")  # it counts where it was made
    monkeypatch.setattr(torch, "get_num_threads", threads)
    covered: list[int] = []
    progress = lambda what, done, total: covered.append(done)  # noqa: E731
    mined, _, _ = mine_images(tmp_path, work_of(SETTINGS, here), SETTINGS, here, progress)
    assert covered[0] == 64
    assert_same(mined["maps"], whole["maps"])


def test_ranks_of_a_machine_share_its_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mining_pass, "memory_budget", lambda device: 1 << 30)
    given: list[int | None] = []
    original = mining_pass.mine

    def spied(model: Any, source: Any, layers: Any, config: Any, **options: Any) -> Mined:
        given.append(config.memory)
        return original(model, source, layers, config, **options)

    monkeypatch.setattr(mining_pass, "mine", spied)
    work_on(tmp_path / "four", replace(ALONE, local_size=4))
    work_on(tmp_path / "one")
    assert given == [1 << 28, None]


@pytest.fixture
def shard_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(mining_pass, "check", lambda config, progress: inputs())
    return SimpleNamespace(mine=config(), workers=0, model="net", out=str(tmp_path / "shards"))


def test_shards_merge_into_a_folder_from_which_the_run_goes_on(
    tmp_path: Path, whole: Mined, shard_settings: Any
) -> None:
    paths = [mine_shard(shard_settings, (i, 3)) for i in (3, 1, 2)]
    assert [path.name for path in paths] == [f"shard-{i}-of-3.safetensors" for i in (3, 1, 2)]
    out = merge_shards(paths, tmp_path / "run")
    assert work_on(out, die_at=0)["flat"].images == IMAGES  # nothing is left to mine
    found = on_ranks(2, lambda world: work_on(out, world))[0]
    for layer in LAYERS:
        assert_same(found[layer], whole[layer])
    with pytest.raises(InputError, match="shards 2/3 missing"):
        merge_shards(paths[:2], tmp_path / "other")
    assert not (tmp_path / "other").exists()
    artifacts.write_json(out / artifacts.MANIFEST, {"schema_version": 1, "identity": {}})
    with pytest.raises(RunFolderError, match="holds another run"):
        merge_shards(paths, out)


def test_a_killed_shard_goes_on(tmp_path: Path, whole: Mined, shard_settings: Any) -> None:
    def die(what: str, done: int, total: int) -> None:
        if done >= 32:
            raise Killed

    with pytest.raises(Killed):
        mine_shard(shard_settings, (1, 1), die)
    told: list[int] = []
    path = mine_shard(shard_settings, (1, 1), lambda what, done, total: told.append(done))
    assert len(told) == 9  # 134 of 150 images, in micro-batches of 16
    assert mine_shard(shard_settings, (1, 1), die) == path
    found = work_on(merge_shards([path], tmp_path / "run"))
    assert_same(found["maps"], whole["maps"])


def leave_shelf(scratch: Path) -> Path:
    """Leave what a process does that is killed while it puts layers away."""
    with shelf(scratch):
        (inside,) = scratch.glob("layers-*")
        left = inside.with_name(f"{inside.name}-left")
        left.mkdir()
        (left / "0.safetensors").write_bytes(b"half")
    return left


@pytest.mark.parametrize("ranks", [1, 3])
def test_files_of_killed_ranks_are_removed(tmp_path: Path, whole: Mined, ranks: int) -> None:
    with pytest.raises(Killed):
        work_on(tmp_path, die_at=60)
    left = leave_shelf(tmp_path / PARTIAL)
    amid = []

    def progress(what: str, done: int, total: int) -> None:
        amid.append(left.exists())

    def work(world: World) -> Any:
        with _drawing:
            here = inputs()
        return mine_images(tmp_path, work_of(SETTINGS, here), SETTINGS, here, progress, world)

    assert_same(on_ranks(ranks, work)[0][0]["maps"], whole["maps"])
    assert amid
    assert not any(amid)
    assert not [*(tmp_path / PARTIAL).glob("layers-*")]


def test_files_of_a_killed_shard_are_removed_those_of_others_stay(shard_settings: Any) -> None:
    folder, amid = Path(shard_settings.out), []

    def shelves() -> set[Path]:
        return set(folder.rglob("layers-*"))

    def beside(what: str, done: int, total: int) -> None:
        if not amid:
            (own,) = shelves()  # not the one that was left
            amid.append(own)
            mine_shard(shard_settings, (12, 19))
            assert shelves() == {own}

    left = leave_shelf(folder / ".shard-1-of-19")
    mine_shard(shard_settings, (1, 19), beside)
    assert amid
    assert not left.exists()
    names = [f"shard-{i}-of-19.safetensors" for i in (1, 12)]
    assert sorted(path.name for path in folder.iterdir()) == names


def test_a_shard_of_other_work_is_not_overwritten(shard_settings: Any) -> None:
    path = mine_shard(shard_settings, (2, 9))
    before = path.read_bytes()
    shard_settings.mine = config(top_k=5)
    with pytest.raises(
        InputError, match=r"other work; got top_k 6; expected top_k 5.*another --out"
    ):
        mine_shard(shard_settings, (2, 9))
    assert path.read_bytes() == before


def test_a_shard_goes_on_only_as_it_was_begun_and_stands_when_it_is_done(
    shard_settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(what: str, done: int, total: int) -> None:
        if done >= 32:
            raise Killed

    with pytest.raises(Killed):
        mine_shard(shard_settings, (1, 2), die)
    done = mine_shard(shard_settings, (2, 2))
    before = done.read_bytes()
    monkeypatch.setattr(torch, "get_num_threads", lambda: 77)
    with pytest.raises(InputError, match=r"other work; got threads \d+; expected threads 77"):
        mine_shard(shard_settings, (1, 2))
    assert mine_shard(shard_settings, (2, 2)).read_bytes() == before


def test_shards_are_no_ranks(shard_settings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mining_pass, "launched", lambda: True)
    with pytest.raises(InputError, match="shards are mined by one process each"):
        mine_shard(shard_settings, (1, 2))
