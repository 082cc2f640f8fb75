"""Folders of every layout."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch

from psi_engine.data import CorruptImage, open_source
from psi_engine.data.source import PIECE
from psi_engine.errors import DataError
from tests.data.pictures import SMALL, picture, read, save


def test_flat_folder(tmp_path: Path) -> None:
    for seed, name in enumerate(["b.png", "a.JPG", "c.webp"]):
        save(tmp_path / name, seed)
    (tmp_path / "notes.txt").write_text("not an image")
    (tmp_path / "._a.png").write_bytes(b"what macOS leaves behind")
    source = open_source(tmp_path)
    assert list(source.keys) == ["a.JPG", "b.png", "c.webp"]
    assert source.labels is None
    assert source.class_names is None
    assert torch.equal(source.view(1, SMALL), SMALL.view(picture(0)))
    assert len(open_source(str(tmp_path), max_images=2)) == 2
    assert len(open_source(tmp_path, max_images=9)) == 3
    with pytest.raises(IndexError):
        source.view(3, SMALL)


def test_one_folder_per_class(tmp_path: Path) -> None:
    # "a-b/…" sorts before "a/…" as text, after it as path parts, which is what classes follow.
    for seed, name in enumerate(["a-b/1.png", "a/deep/2.png", "a/10.png", "c/0.png"]):
        save(tmp_path / name, seed)
    (tmp_path / "empty").mkdir()
    source = open_source(tmp_path)
    assert list(source.keys) == ["a/10.png", "a/deep/2.png", "a-b/1.png", "c/0.png"]
    assert source.labels is not None
    assert source.labels.tolist() == [0, 0, 1, 2]
    assert source.labels.dtype == torch.int64
    assert source.class_names == ("a", "a-b", "c")


@pytest.mark.skipif(os.name != "posix", reason="file names are bytes on POSIX systems only")
def test_names_that_are_no_utf8_are_text_in_tables(tmp_path: Path) -> None:
    save(tmp_path / "plain" / "0.png", 0)
    os.rename(tmp_path / "plain", os.fsencode(tmp_path) + b"/caf\xe9")
    save(tmp_path / "plain" / "1.png", 1)
    source = open_source(tmp_path)
    assert list(source.keys) == ["caf\\xe9/0.png", "plain/1.png"]
    assert source.class_names == ("caf\\xe9", "plain")
    assert pa.array(source.keys).to_pylist() == list(source.keys)
    assert torch.equal(source.view(0, SMALL), SMALL.view(picture(0)))


def test_a_folder_of_splits_stands_for_train(tmp_path: Path) -> None:
    save(tmp_path / "train/cat/1.png", 1)
    save(tmp_path / "val/cat/2.png", 2)
    assert list(open_source(tmp_path).keys) == ["cat/1.png"]
    assert list(open_source(tmp_path / "val").keys) == ["cat/2.png"]


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """A folder in Tiny-ImageNet's layout: 2 classes × 2 images, 2 val images."""
    for wnid, seed in (("n02", 0), ("n01", 10)):
        for i in range(2):
            save(tmp_path / f"train/{wnid}/images/{wnid}_{i}.JPEG", seed + i)
        (tmp_path / f"train/{wnid}/{wnid}_boxes.txt").write_text("")
    for i in range(2):
        save(tmp_path / f"val/images/val_{i}.JPEG", 20 + i)
    (tmp_path / "val/val_annotations.txt").write_text(
        "val_0.JPEG\tn02\t0\t0\t9\t9\nval_1.JPEG\tn01\t0\t0\t9\t9\n"
    )
    save(tmp_path / "test/images/test_0.JPEG", 30)
    (tmp_path / "wnids.txt").write_text("n02\nn01\n")
    (tmp_path / "words.txt").write_text("n01\tgoldfish, Carassius auratus\nn02\tnewt\nn03\tfrog\n")
    return tmp_path


def test_tiny_imagenet_layout(tiny: Path) -> None:
    train = open_source(tiny)
    assert list(train.keys)[:2] == ["n01/images/n01_0.JPEG", "n01/images/n01_1.JPEG"]
    assert train.labels is not None
    assert train.labels.tolist() == [0, 0, 1, 1]
    assert train.class_names == ("goldfish", "newt")
    val = open_source(tiny / "val")
    assert list(val.keys) == ["images/val_0.JPEG", "images/val_1.JPEG"]
    assert val.labels is not None
    assert val.labels.tolist() == [1, 0]
    assert val.class_names == train.class_names
    test = open_source(tiny / "test")
    assert test.labels is None


def test_broken_val_annotations(tiny: Path) -> None:
    (tiny / "val/val_annotations.txt").write_text("val_0.JPEG n02\n")
    with pytest.raises(DataError, match="not in Tiny-ImageNet's form; got line 1"):
        open_source(tiny / "val")


def test_classes_json_names_class_folders(tiny: Path) -> None:
    rows = [{"label": 1, "wnid": "n02", "name": "eft"}, {"label": 0, "wnid": "n01", "name": "carp"}]
    (tiny / "classes.json").write_text(json.dumps(rows))
    assert open_source(tiny).class_names == ("carp", "eft")
    (tiny / "classes.json").write_text(json.dumps([{"label": 3, "name": "carp"}]))
    with pytest.raises(DataError, match=r"does not list classes; got labels that are not 0, 1"):
        open_source(tiny)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: None, r"the folder .* is empty; give a folder with images"),
        (lambda p: (p / "a.txt").write_text("x"), r"no images in .*got 1 files ending in \.txt"),
        (lambda p: (save(p / "a.png", 0), save(p / "b/c.png", 0)), "both beside and inside"),
        (lambda p: (p / "a.parquet").write_bytes(b"PAR0"), "cannot be read as Parquet"),
    ],
)
def test_bad_folders(tmp_path: Path, make: Callable[[Path], Any], message: str) -> None:
    make(tmp_path)
    with pytest.raises(DataError, match=message):
        open_source(tmp_path)


def test_fingerprint_of_a_folder_sees_every_change(tmp_path: Path) -> None:
    for seed, name in enumerate(["x/1.png", "x/2.png", "y/3.png"]):
        save(tmp_path / "data" / name, seed)
    folder = tmp_path / "data"
    seen = [open_source(folder).fingerprint]
    assert open_source(folder, max_images=3).fingerprint == seen[0]
    shutil.copytree(folder, tmp_path / "elsewhere")
    assert open_source(tmp_path / "elsewhere").fingerprint == seen[0]
    seen.append(open_source(folder, max_images=2).fingerprint)
    (folder / "x/2.png").rename(folder / "x/4.png")
    seen.append(open_source(folder).fingerprint)
    (folder / "x/4.png").write_bytes(b"shorter")
    seen.append(open_source(folder).fingerprint)
    (folder / "y").rename(folder / "z")
    seen.append(open_source(folder).fingerprint)
    assert len(set(seen)) == len(seen)


def test_fingerprint_of_a_folder_sees_other_bytes_of_the_same_size(tmp_path: Path) -> None:
    file = tmp_path / "data" / "1.bmp"
    save(file, 0)
    first = open_source(tmp_path / "data").fingerprint
    size, times = file.stat().st_size, (file.stat().st_atime_ns, file.stat().st_mtime_ns)
    save(file, 1)
    assert file.stat().st_size == size
    os.utime(file, ns=times)
    assert open_source(tmp_path / "data").fingerprint != first
    save(file, 0)
    os.utime(file, (1e9, 1e9))
    assert open_source(tmp_path / "data").fingerprint == first
    large = bytearray(3 * PIECE)
    seen = {first}
    for place in (0, PIECE - 1, len(large) - PIECE, len(large) - 1):
        large[place] ^= 1
        file.write_bytes(large)
        seen.add(open_source(tmp_path / "data").fingerprint)
    assert len(seen) == 5


@pytest.mark.parametrize("workers", [0, 1])
def test_a_file_that_goes_away_is_no_corrupt_image(tmp_path: Path, workers: int) -> None:
    for seed in range(20):
        save(tmp_path / f"{seed:02d}.png", seed)
    source = open_source(tmp_path)
    (tmp_path / "07.png").unlink()
    with pytest.raises(DataError, match=r"07\.png cannot be read any more; got .*No such file"):
        read(source, workers=workers)


def test_which_errors_of_the_system_skip_an_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path / "a.png", 0)
    source = open_source(tmp_path)
    for number, expected in (
        (errno.EIO, DataError),
        (errno.ESTALE, DataError),
        (errno.EACCES, CorruptImage),
    ):

        def fail(path: Path, number: int = number) -> bytes:
            raise OSError(number, "a fault")

        monkeypatch.setattr(Path, "read_bytes", fail)
        with pytest.raises(expected, match="a fault"):
            source.item(0)
