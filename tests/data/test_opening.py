"""Sources opened by path, handed back and cut."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from psi_engine.data import open_source
from psi_engine.errors import DataError
from tests.data.pictures import SMALL, image_array, save, write


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


def test_a_folder_with_images_of_several_kinds_is_refused(tmp_path: Path) -> None:
    for seed in range(3):
        save(tmp_path / "a" / f"{seed}.JPEG", seed)
    (tmp_path / "a" / "backup.tar").write_bytes(b"")
    with pytest.raises(
        DataError, match=r"several kinds; got 1 tar files, .*backup\.tar; 3 image files, .*0\.JPEG"
    ):
        open_source(tmp_path)
    write(tmp_path / "b" / "x.PARQUET", range(2))
    with pytest.raises(DataError, match="got 1 Parquet files, .*; 1 tar files, .*; 3 image files"):
        open_source(tmp_path)
    (tmp_path / "a" / "backup.tar").unlink()
    with pytest.raises(DataError, match=r"got 1 Parquet files, such as .*x\.PARQUET; 3 image"):
        open_source(tmp_path)
    assert len(open_source(tmp_path / "a")) == 3
    assert len(open_source(tmp_path / "b")) == 2


def test_images_that_rows_name_may_lie_beside_them(tmp_path: Path) -> None:
    save(tmp_path / "files/a.png", 4)
    pq.write_table(
        pa.table({"image": image_array([None], ["files/a.png"])}), tmp_path / "a.parquet"
    )
    assert list(open_source(tmp_path).keys) == ["files/a.png"]
    save(tmp_path / "files/b.png", 5)
    with pytest.raises(DataError, match=r"1 image files, such as .*b\.png"):
        open_source(tmp_path)
