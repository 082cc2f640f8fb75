"""Parts of mined images: any order, twice, missing, of other work, broken."""

from __future__ import annotations

import errno
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from psi_engine.errors import CorruptDataError, InputError
from psi_engine.mining import Miner, pack_state, unpack_state
from psi_engine.ranges import Ranges
from psi_engine.shards import (
    FINISHED,
    Part,
    Saver,
    Work,
    join,
    merge,
    parse_share,
    read_part,
    share_of,
    take_stock,
    told_aside,
    write_part,
)
from tests.mining.test_miner import LAYER, assert_same, config, mined, tied

MAPS = tied(images=23)
IMAGES = len(MAPS)
CONFIG = config()
MADE = {"torch": "2", "threads": "1"}


def work(**changes) -> Work:
    shapes = {LAYER: mined(MAPS[:0], [], CONFIG).shape}
    identity = {"model": "net", "weights": "w", "data": "d"}
    return replace(Work("key", identity, IMAGES, CONFIG, shapes, MADE), **changes)


def state(images: Ranges, position: int = 0, skipped: dict[int, str] | None = None):
    ids = images.indices().tolist()
    return pack_state({LAYER: mined(MAPS[ids], ids, CONFIG)}, skipped or {}, position)


def shard(folder: Path, i: int, n: int, upto: int = IMAGES, **changes) -> Path:
    path = folder / f"shard-{i}-of-{n}.safetensors"
    covered = share_of(IMAGES, (i, n)).below(upto)
    write_part(path, work(**changes), covered, state(covered), (i, n))
    return path


def assert_whole(found) -> None:
    miner, skipped = Miner(LAYER, work().shapes[LAYER], CONFIG), {}
    unpack_state(found, {LAYER: miner}, skipped, IMAGES)
    assert_same(miner.result(), mined(MAPS, list(range(IMAGES)), CONFIG).result())


@pytest.mark.parametrize("order", [(1, 2, 3, 4), (4, 2, 1, 3), (3, 3, 1, 2, 4, 1)])
def test_shards_join_in_any_order_and_twice(tmp_path: Path, order: tuple[int, ...]) -> None:
    paths = [shard(tmp_path / str(k), i, 4) for k, i in enumerate(order)]
    told: list[str] = []
    merged, covered, found = merge(paths, told.append)
    assert merged == work()
    assert covered == Ranges.of([(0, IMAGES)])
    assert_whole(found)
    assert len(told) == len(order) - 4


def test_a_folder_of_shards_and_an_unfinished_double(tmp_path: Path) -> None:
    for i in (1, 2):
        shard(tmp_path / "all", i, 2)
    half = shard(tmp_path / "old", 1, 2, upto=5)
    told: list[str] = []
    assert_whole(merge([half, tmp_path / "all"], told.append)[2])
    assert told == [f"{half} holds nothing the others do not; left out"]


def test_missing_shards_are_named(tmp_path: Path) -> None:
    paths = [shard(tmp_path, i, 5) for i in (1, 3)] + [shard(tmp_path, 5, 5, upto=20)]
    with pytest.raises(
        InputError,
        match=r"got shards 2/5, 4/5, 5/5 missing or unfinished: images 4–8, 13–17, 20–22 of 23",
    ):
        merge(paths)


def test_shards_of_two_cuts_overlap(tmp_path: Path) -> None:
    paths = [shard(tmp_path, 1, 2), shard(tmp_path, 2, 2), shard(tmp_path, 2, 3)]
    with pytest.raises(InputError, match=r"overlap in part.*2-of-3.*both with images"):
        merge(paths)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"identity": {"model": "net", "weights": "v", "data": "d"}}, "got weights v; expected"),
        ({"mine": config(top_k=7)}, "got top_k 7; expected top_k 6"),
        ({"images": 22}, "got images 22; expected images 23"),
        ({"key": "other"}, "got channels or preprocess"),
        ({"made": {**MADE, "threads": "2"}}, "got threads 2; expected threads 1"),
    ],
)
def test_shards_of_other_work_are_refused(tmp_path: Path, changes: dict, said: str) -> None:
    paths = [shard(tmp_path, 1, 2), tmp_path / "other.safetensors"]
    covered = share_of(IMAGES, (2, 2))
    write_part(paths[1], work(**changes), covered, state(covered), (2, 2))
    with pytest.raises(InputError, match=f"other.safetensors is a shard of other work; {said}"):
        merge(paths)


def test_what_is_no_shard_is_refused(tmp_path: Path) -> None:
    whole = shard(tmp_path, 1, 1)
    torn = tmp_path / "torn.safetensors"
    torn.write_bytes(whole.read_bytes()[:100])
    for path, said in ((torn, "cannot be read"), (tmp_path / "none", "cannot be read")):
        with pytest.raises(InputError, match=said):
            merge([path])
    with pytest.raises(InputError, match="no shards in the folder"):
        merge([(tmp_path / "empty").mkdir() or tmp_path / "empty"])


def test_too_many_unreadable_images_of_all_shards_together(tmp_path: Path) -> None:
    for i in (1, 2):
        covered = share_of(IMAGES, (i, 2))
        bad = {11 * i + k - 1: "broken" for k in range(2)}
        write_part(
            tmp_path / f"{i}.safetensors", work(), covered, state(covered, skipped=bad), (i, 2)
        )
    with pytest.raises(CorruptDataError, match="got 4 of 23"):
        merge([tmp_path])


@pytest.mark.parametrize("text", ["0/4", "5/4", "1", "a/b", "1/0", "-1/4", "1/4/2"])
def test_a_shard_is_i_of_n(text: str) -> None:
    with pytest.raises(InputError, match="expected i/n"):
        parse_share(text)
    assert parse_share("3/8") == (3, 8)


@pytest.mark.parametrize(("images", "n"), [(10, 3), (3, 5), (23, 1)])
def test_shares_cover_every_image_once(images: int, n: int) -> None:
    shares = [share_of(images, (i, n)).indices().tolist() for i in range(1, n + 1)]
    assert [image for share in shares for image in share] == list(range(images))


def test_a_saver_lets_go_of_old_parts_only_when_the_new_one_stands(tmp_path: Path) -> None:
    """Killed at any point of the sequence, the folder holds every image that was there."""
    old = [Ranges.of([(0, 5)]), Ranges.of([(9, 12)])]
    adopted: list[Part] = []
    for number, covered in enumerate(old):
        path = tmp_path / f"0001-{number}.safetensors"
        write_part(path, work(), covered, state(covered))
        adopted.append(read_part(path))
    todo = Ranges.of([(5, 9), (12, 23)])
    saver = Saver(tmp_path / "0002-0.safetensors", work(), adopted, todo)
    seen = Ranges.of([(0, 14)])
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    saver(state(seen, position=14))
    assert [part.covered for part in take_stock(tmp_path, work())] == [seen]
    for path, data in before.items():  # killed before the old ones went
        path.write_bytes(data)
    assert [part.covered for part in take_stock(tmp_path, work())] == [seen]
    assert len([*tmp_path.iterdir()]) == 1
    saver(state(Ranges.of([(0, 23)]), position=23))
    assert_whole(join(take_stock(tmp_path, work())))


def test_stock_sets_aside_what_it_cannot_add_up_and_says_why(tmp_path: Path) -> None:
    folder = tmp_path / "mining.partial"
    kept = shard(folder, 1, 2)
    covered = share_of(IMAGES, (2, 2))
    bytes_of = {"b": b"torn"}
    for name, changes in (("a", {"key": "other"}), ("c", {"made": {**MADE, "torch": "3"}})):
        path = folder / f"{name}.safetensors"
        write_part(path, work(**changes), covered, state(covered))
        bytes_of[name] = path.read_bytes()
    (folder / "b.safetensors").write_bytes(b"torn")
    for _ in range(2):
        assert [part.path for part in take_stock(folder, work())] == [kept]
    assert [*folder.iterdir()] == [kept]
    aside = tmp_path / "mining.set-aside"
    for name in "abc":
        assert (aside / f"{name}.safetensors").read_bytes() == bytes_of[name]
    told = told_aside(folder)
    assert len(told) == 3
    assert [x["file"] for x in told] == [f"mining.set-aside/{name}.safetensors" for name in "abc"]
    assert told[0]["reason"] == "mined with other settings"
    assert told[1]["reason"].startswith("a shard cannot be read")
    assert told[2]["reason"] == "mined by torch 3; now torch 2"
    (folder / "b.safetensors").write_bytes(b"another")
    take_stock(folder, work())
    assert (aside / "b.safetensors").read_bytes() == b"torn"
    assert (aside / "b-1.safetensors").read_bytes() == b"another"


def test_parts_that_share_images_are_not_added_up(tmp_path: Path) -> None:
    folder = tmp_path / "mining.partial"
    for name, start, stop in (("a", 0, 6), ("b", 4, 9), ("c", 9, 12), ("d", 1, 3)):
        covered = Ranges.of([(start, stop)])
        write_part(folder / f"{name}.safetensors", work(), covered, state(covered))
    assert [str(part.covered) for part in take_stock(folder, work())] == ["0–5", "9–11"]
    assert [path.name for path in sorted(folder.iterdir())] == ["a.safetensors", "c.safetensors"]
    (told,) = told_aside(folder)
    assert told["reason"] == "shares images with a.safetensors"


def test_a_part_of_every_image_is_a_finished_stage_whoever_made_it(tmp_path: Path) -> None:
    path = shard(tmp_path, 1, 1, made={**MADE, "threads": "64"})
    assert [part.path for part in take_stock(tmp_path, work())] == [path]


def test_a_part_whose_candidates_are_not_refined_is_not_finished(tmp_path: Path) -> None:
    """Every image is covered, but it is merged as little as it is taken from another maker."""
    exact = work(mine=replace(CONFIG, precision="exact-fp16"))
    every = Ranges.of([(0, IMAGES)])
    saver = Saver(tmp_path / "a.safetensors", exact, [], every, (1, 1))
    saver(state(every, position=IMAGES))
    part = read_part(saver.path)
    assert part.covered == every
    assert not part.complete
    with pytest.raises(InputError, match=r"shards 1/1 missing or unfinished"):
        merge([saver.path])
    elsewhere = replace(exact, made={**MADE, "threads": "64"})
    assert not take_stock(tmp_path, elsewhere)
    saver(state(every, position=IMAGES) | {FINISHED: torch.tensor(True)})
    assert read_part(saver.path).complete
    assert len(take_stock(tmp_path, elsewhere)) == 1


def test_a_file_system_that_fails_costs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = shard(tmp_path, 1, 2)

    def stale(*args: object, **kwargs: object) -> None:
        raise OSError(errno.ESTALE, "Stale file handle")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", stale)
        with pytest.raises(OSError, match="Stale file handle"):
            take_stock(tmp_path, work())
    assert [part.path for part in take_stock(tmp_path, work())] == [path]
