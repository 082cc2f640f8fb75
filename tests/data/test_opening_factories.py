"""Data sets named as ``package.module:factory``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import Dataset, IterableDataset, TensorDataset

from psi_engine.data import ImageSource, needs_download, open_source
from psi_engine.errors import DataError
from tests.data.pictures import SMALL, picture, read, save

HERE = __name__


class Pictures(Dataset[Any]):
    def __len__(self) -> int:
        return 6

    def __getitem__(self, index: int) -> Any:
        return picture(index), index % 2


class Streamed(IterableDataset[Any]):
    def __iter__(self) -> Any:
        return ((picture(index), index % 2) for index in range(6))


def streamed() -> Streamed:
    return Streamed()


def source() -> ImageSource:
    return open_source(Pictures(), max_images=3)


def tensors() -> TensorDataset:
    return TensorDataset(torch.ones(4, 3, 8, 8))


def with_argument(root: str) -> Pictures:
    return Pictures()


def nonsense() -> str:
    return "images"


def listed() -> list[Any]:
    return [picture(0)]


def broken() -> Pictures:
    raise FileNotFoundError("no file of labels")


def empty() -> TensorDataset:
    return TensorDataset(torch.ones(0, 3, 8, 8))


@pytest.mark.parametrize("name", ["Pictures", "streamed"])
def test_map_and_iterable_data_sets(name: str) -> None:
    spec = f"{HERE}:{name}"
    assert not needs_download(spec)
    found = open_source(spec)
    ids, views, skipped = read(found)
    assert ids.tolist() == list(range(6))
    assert torch.equal(views, torch.stack([SMALL.view(picture(i)) for i in range(6)]))
    assert not skipped
    assert found.labels is not None
    assert found.labels.tolist() == [0, 1, 0, 1, 0, 1]
    assert len(open_source(spec, max_images=4)) == 4
    assert found.fingerprint == open_source(spec).fingerprint


def test_sources_and_tensors() -> None:
    assert list(open_source(f"{HERE}:source").keys) == ["0", "2", "4"]
    assert read(open_source(f"{HERE}:tensors"))[1].shape == (4, 3, 8, 8)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (f"{HERE}:Pictuers", "has no factory 'Pictuers'; expected one of Pictures"),
        (f"{HERE}:HERE", "has no factory 'HERE'"),
        ("nowhere.sets:make", "no module 'nowhere' for 'nowhere.sets:make'; expected Parquet, tar"),
        (f"{HERE}:nonsense", r"did not return a data set; got builtins\.str; expected a torch Dat"),
        (f"{HERE}:listed", r"got builtins\.list"),
        (f"{HERE}:broken", "broken failed; got FileNotFoundError: no file of labels"),
        (f"{HERE}:with_argument", "with_argument failed; got TypeError.*without arguments"),
        (f"{HERE}:empty", "is empty"),
        ("no/folder:make", "no such file or folder"),
        ("sets:", "no such file or folder: sets:"),
    ],
)
def test_what_is_wrong_is_said(name: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        open_source(name)


def test_a_folder_of_that_name_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    save(tmp_path / "sets:make" / "a.png", 0)
    assert list(open_source("sets:make").keys) == ["a.png"]


def test_worker_processes_find_a_module_of_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    # as an installed command has it: without the working directory
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p])
    (tmp_path / "psi_own_set.py").write_text(
        "import torch\n"
        "class Own(torch.utils.data.Dataset):\n"
        "    def __len__(self): return 4\n"
        "    def __getitem__(self, i): return torch.full((3, 8, 8), float(i))\n"
    )
    _, views, skipped = read(open_source("psi_own_set:Own"), batch_size=2, workers=1)
    assert views[:, 0, 0, 0].tolist() == [0, 1, 2, 3]
    assert not skipped
