"""Sources opened by path, handed back and cut."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from psi_engine.data import open_source
from psi_engine.errors import DataError
from tests.data.pictures import SMALL, save


def test_bad_paths(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file or folder: .*nowhere; expected Parquet"):
        open_source(tmp_path / "nowhere")
    save(tmp_path / "a.png", 0)
    with pytest.raises(DataError, match="not a collection of images; got one image"):
        open_source(tmp_path / "a.png")
    (tmp_path / "a.zip").write_bytes(b"")
    with pytest.raises(DataError, match=r"got a \.zip file"):
        open_source(tmp_path / "a.zip")
    with pytest.raises(DataError, match="max_images is too small; got 0"):
        open_source(tmp_path, max_images=0)


def test_a_source_is_handed_back(tmp_path: Path) -> None:
    save(tmp_path / "a.png", 0)
    save(tmp_path / "b.png", 0)
    source = open_source(tmp_path)
    assert open_source(source) is source
    cut = open_source(source, max_images=1)
    assert list(cut.keys) == ["a.png"]
    assert cut.fingerprint != source.fingerprint


def test_fewer_images_are_spread_over_all_classes(tmp_path: Path) -> None:
    for label in range(4):
        for number in range(5):
            save(tmp_path / f"class{label}" / f"{number}.png", 5 * label + number)
    whole = open_source(tmp_path)
    cut = open_source(tmp_path, max_images=8)
    places = [0, 2, 5, 7, 10, 12, 15, 17]
    assert list(cut.keys) == [whole.keys[place] for place in places]
    assert cut.labels is not None
    assert cut.labels.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert cut.class_names == whole.class_names
    assert torch.equal(cut.view(5, SMALL), whole.view(12, SMALL))
