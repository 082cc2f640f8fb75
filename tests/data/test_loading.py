"""Batches against one another."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import time
import tracemalloc
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from psi_engine.data import CorruptImage, batches, open_source
from psi_engine.errors import CorruptDataError, DataError, PsiEngineError
from tests.data.pictures import SMALL, Listed, picture, read, save, write


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """24 images; 5 and 17 are broken, one cut short and one of text."""
    for i in range(24):
        save(tmp_path / f"{i:02d}.png", i)
    (tmp_path / "05.png").write_bytes((tmp_path / "05.png").read_bytes()[:150])
    (tmp_path / "17.png").write_text("not an image")
    return tmp_path


def check_folder(ids: Tensor, views: Tensor, skipped: dict[int, str]) -> None:
    assert ids.tolist() == [i for i in range(24) if i not in (5, 17)]
    assert skipped.keys() == {5, 17}
    assert "truncated" in skipped[5]
    assert skipped[17] == "not an image that PIL can identify"
    expected = torch.stack([SMALL.view(picture(i)) for i in ids.tolist()])
    assert torch.equal(views, expected)


@pytest.mark.parametrize("batch_size", [1, 5, 24, 100])
def test_batch_size_changes_nothing(folder: Path, batch_size: int) -> None:
    check_folder(*read(open_source(folder), batch_size))


def test_workers_change_nothing(folder: Path) -> None:
    check_folder(*read(open_source(folder), batch_size=5, workers=2))


def test_parquet_crosses_to_a_worker(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", range(6), row_group_size=4)
    source = open_source(tmp_path)
    source.view(0, SMALL)  # open readers and cached rows must not travel
    again = pickle.loads(pickle.dumps(source))
    assert again.fingerprint == source.fingerprint
    assert torch.equal(again.view(5, SMALL), source.view(5, SMALL))


def test_a_data_set_that_cannot_be_pickled_is_refused_by_workers() -> None:
    dataset = Listed(*[picture(i) for i in range(4)])
    dataset.transform = lambda x: x  # type: ignore[attr-defined]
    with pytest.raises(DataError, match="cannot be sent to worker processes; got .*use workers=0"):
        read(open_source(dataset), workers=1)


def test_some_images_in_any_order(folder: Path) -> None:
    ids, views, skipped = read(open_source(folder), indices=torch.tensor([9, 2, 23]))
    assert ids.tolist() == [9, 2, 23]
    assert torch.equal(views[2], SMALL.view(picture(23)))
    assert not skipped


def test_many_ids_take_no_memory_beyond_their_tensor() -> None:
    """Lists of a million numbers and of their batches would be 45 MB."""
    source, many = open_source(Listed(*torch.zeros(2, 3, 4, 4))), torch.zeros(1_000_000).long()
    tracemalloc.start()
    try:
        first = next(batches(source, SMALL, batch_size=64, indices=many, skipped={}))
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(first.image_ids) == 64
    assert most < 1 << 20


def test_too_many_corrupt_images_stop_the_run(folder: Path) -> None:
    (folder / "03.png").write_bytes(b"")
    skipped: dict[int, str] = {}
    with pytest.raises(
        CorruptDataError, match=r"got 3 of 24, the last one 17\.png: .*expected at most 10%"
    ):
        list(batches(open_source(folder), SMALL, batch_size=7, skipped=skipped))
    assert skipped[3] == "the file is empty"
    ids, _, _ = read(open_source(folder), max_skipped=0.2)
    assert len(ids) == 21


def test_a_batch_of_corrupt_images_is_left_out(folder: Path) -> None:
    (folder / "16.png").write_bytes(b"")
    found = list(batches(open_source(folder), SMALL, batch_size=2, skipped={}, max_skipped=0.5))
    assert len(found) == 11
    assert min(len(batch.image_ids) for batch in found) == 1


def test_a_decompression_bomb_is_corrupt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 20)
    save(tmp_path / "a.png", 0)
    with pytest.raises(CorruptImage, match="decompression bomb"):
        open_source(tmp_path).view(0, SMALL)


def test_bad_batch_size(folder: Path) -> None:
    with pytest.raises(DataError, match="batch_size is too small; got 0"):
        read(open_source(folder), batch_size=0)


class Slow(Listed):
    """Items that take a while."""

    def __getitem__(self, index: int) -> Tensor:
        time.sleep(0.02)
        return super().__getitem__(index)


class Deadly(Listed):
    """Item 5 ends the process that reads it, unless it is the main one."""

    def __getitem__(self, index: int) -> Tensor:
        if index == 5 and multiprocessing.parent_process() is not None:
            os._exit(9)
        return super().__getitem__(index)


def test_the_loader_says_how_long_it_was_waited_for() -> None:
    source = open_source(Slow(*torch.zeros(6, 3, 4, 4)))
    loader = batches(source, SMALL, batch_size=2, skipped={})
    assert loader.waited == 0
    started = time.perf_counter()
    next(loader)
    first = loader.waited
    assert first >= 0.04
    time.sleep(0.05)  # the reader's own work does not count
    assert loader.waited == first
    assert len(list(loader)) == 2
    assert 0.12 <= loader.waited <= time.perf_counter() - started - 0.05


def test_a_process_that_dies_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.utils.data._utils.MP_STATUS_CHECK_INTERVAL", 0.2)
    source = open_source(Deadly(*torch.zeros(8, 3, 4, 4)))
    with pytest.raises(
        PsiEngineError, match=r"a process that decodes images of .*Deadly died; got .*fewer --work"
    ):
        read(source, batch_size=2, workers=1)


def test_errors_in_a_process_are_raised_as_they_are() -> None:
    dataset = Listed(torch.zeros(3, 4, 4), torch.zeros(3, 4, 5))
    with pytest.raises(DataError) as here:
        read(open_source(dataset))
    with pytest.raises(DataError) as there:
        read(open_source(dataset), workers=1)
    assert str(here.value) == str(there.value)


def test_views_are_sent_to_a_device(folder: Path) -> None:
    check_folder(*read(open_source(folder), device=torch.device("cpu")))


@pytest.mark.gpu
@pytest.mark.parametrize("workers", [0, 2])
def test_views_are_sent_to_the_gpu_ahead(folder: Path, workers: int) -> None:
    device = torch.device("cuda")
    ids, views, skipped = read(open_source(folder), device=device, workers=workers)
    assert views.device.type == "cuda"
    check_folder(ids, views.cpu(), skipped)
