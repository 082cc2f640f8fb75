"""Shares, and the refusal of jobs whose ranks see different things."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import IO

import pytest

from psi_engine import distributed
from psi_engine.distributed import ALONE, LOCK, World, only_job
from psi_engine.errors import InputError, RunFolderError
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


def hold(path: Path) -> subprocess.Popen[str]:
    code = (
        "import sys, time; from pathlib import Path; from psi_engine.distributed import only_job\n"
        "with only_job(Path(sys.argv[1])):\n    print('held', flush=True); time.sleep(60)"
    )
    command = [sys.executable, "-c", code, str(path)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def test_a_second_job_is_refused_and_a_killed_one_locks_nothing(tmp_path: Path) -> None:
    lock = tmp_path / "run" / LOCK
    with hold(lock) as other:
        try:
            assert other.stdout.readline() == "held\n"
            said = f"another job is writing there.*in use by process {other.pid} on"
            with pytest.raises(RunFolderError, match=said), only_job(lock):
                pass
            assert lock.exists()
        finally:
            other.kill()
    assert lock.exists()  # left behind by a kill
    for _ in range(2):
        with only_job(lock):
            assert lock.exists()
        assert not lock.exists()


def test_a_lock_file_that_another_job_just_removed_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock, tries = tmp_path / LOCK, []

    def removed_first(file: IO[str], *_: object) -> None:
        tries.append(file.name)
        if len(tries) == 1:
            lock.unlink()

    monkeypatch.setattr("fcntl.lockf", removed_first)
    with only_job(lock):
        assert lock.read_text().startswith(f"process {os.getpid()} on ")
    assert len(tries) == 2


def test_who_holds_a_folder_may_take_it_again_another_thread_may_not(tmp_path: Path) -> None:
    lock, errors = tmp_path / LOCK, []

    def other() -> None:
        try:
            with only_job(lock):
                pass
        except RunFolderError as error:
            errors.append(str(error))

    def try_in_a_thread() -> None:
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()

    with only_job(lock):
        with only_job(lock):
            pass
        assert lock.exists()
        try_in_a_thread()
        assert lock.exists()
    assert not lock.exists()
    assert len(errors) == 1
    assert "in use by another thread of process" in errors[0]
    try_in_a_thread()
    assert len(errors) == 1


def test_only_rank_0_locks(tmp_path: Path) -> None:
    def work(world):
        with only_job(tmp_path / LOCK, world):
            world.wait()
            return (tmp_path / LOCK).exists()

    assert on_ranks(2, work)[0]
    assert not (tmp_path / LOCK).exists()


def test_a_file_system_without_locks_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.lockf", no_locks)
    with (
        pytest.warns(RuntimeWarning, match="cannot be locked.*no other job"),
        only_job(tmp_path / LOCK),
    ):
        pass


def test_a_folder_of_ones_own_is_refused(tmp_path: Path) -> None:
    def work(folder):
        return lambda world: world.require_shared(folder(world))

    on_ranks(2, work(lambda world: tmp_path / "shared"))
    assert not [*(tmp_path / "shared").iterdir()]
    with pytest.raises(Exception, match="do not share the folder.*rank 1 sees as another"):
        on_ranks(2, work(lambda world: tmp_path / str(world.rank)))
