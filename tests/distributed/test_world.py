"""Shares, and the refusal of jobs whose ranks see different things."""

from __future__ import annotations

from pathlib import Path

import pytest

from psi_engine import distributed
from psi_engine.distributed import ALONE, World
from psi_engine.errors import InputError
from tests.distributed.threads import on_ranks


@pytest.mark.parametrize("size", [1, 2, 3, 7])
@pytest.mark.parametrize("items", [0, 1, 5, 6, 7, 100])
def test_shares_are_a_fair_cut(items: int, size: int) -> None:
    shares = [World(rank, size).share(items) for rank in range(size)]
    assert [i for share in shares for i in range(share.start, share.stop)] == list(range(items))
    lengths = [share.stop - share.start for share in shares]
    assert max(lengths) - min(lengths) <= 1
    assert lengths[0] == max(lengths)  # rank 0 never goes without


def test_a_process_without_a_launcher_is_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANK", raising=False)
    with distributed.join("cpu") as world:
        assert world == ALONE
        assert world.main
    assert distributed.launched_rank() == 0


def test_a_launcher_of_one_rank_is_no_job(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in zip(distributed._LAUNCHED, ("0", "1", "localhost", "1"), strict=True):
        monkeypatch.setenv(name, value)
    assert not distributed.launched()
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert distributed.launched()


def test_a_device_named_for_many_ranks_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed.torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(distributed.torch.cuda, "device_count", lambda: 2)
    with pytest.raises(InputError, match="one device is named for several ranks; got device cuda:"):
        distributed._device_of("cuda:1", 0, 2)
    with pytest.raises(InputError, match="more ranks than GPUs; got 3 ranks and 2 GPUs"):
        distributed._device_of("auto", 0, 3)
    assert str(distributed._device_of("auto", 1, 2)) == "cuda:1"


def test_different_data_are_refused() -> None:
    with pytest.raises(Exception, match="the ranks see different data; got 1 on rank 1; expected"):
        on_ranks(3, lambda world: world.require_same("data", min(world.rank, 1)))
    on_ranks(3, lambda world: world.require_same("data", 7))


def test_a_folder_of_ones_own_is_refused(tmp_path: Path) -> None:
    def work(folder):
        return lambda world: world.require_shared(folder(world))

    on_ranks(2, work(lambda world: tmp_path / "shared"))
    assert not [*(tmp_path / "shared").iterdir()]
    with pytest.raises(Exception, match="do not share the folder.*rank 1 sees as another"):
        on_ranks(2, work(lambda world: tmp_path / str(world.rank)))
