"""Tar shards."""

from __future__ import annotations

import io
import json
import os
import pickle
import tarfile
from pathlib import Path
from typing import Any

import pytest
import torch

from psi_engine.data import CorruptImage, open_source, tar_index
from psi_engine.data.tar_index import expand_braces
from psi_engine.errors import DataError
from tests.data.pictures import SMALL, encoded, picture, read

Files = list[tuple[str, bytes]]


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("PSI_ENGINE_CACHE", str(folder))
    return folder


def write_tar(path: Path, files: Files) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, data in files:
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    return path


def samples(seeds: range, **kinds: Any) -> Files:
    """Sample ``a/000007`` with ``png`` of picture 7 and the other kinds as functions of 7."""
    files: Files = []
    for seed in seeds:
        files.append((f"a/{seed:06d}.png", encoded(picture(seed))))
        files += [(f"a/{seed:06d}.{kind}", make(seed)) for kind, make in kinds.items()]
    return files


def by_cls(seed: int) -> bytes:
    return b"%d\n" % (seed % 3)


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    for number in range(3):
        seeds = range(4 * number, 4 * number + 4)
        write_tar(tmp_path / f"train-{number:03d}.tar", samples(seeds, cls=by_cls, txt=by_cls))
    return tmp_path


@pytest.mark.parametrize("spec", ["", "train-{000..002}.tar", "train-00{0,1,2}.tar"])
def test_samples_in_order_by_any_name(shards: Path, spec: str) -> None:
    source = open_source(shards / spec)
    assert len(source) == 12
    assert source.keys[5] == "train-001.tar/a/000005.png"
    assert source.labels is not None
    assert source.labels.tolist() == [i % 3 for i in range(12)]
    assert source.class_names is None
    ids, views, skipped = read(source, batch_size=5)
    assert ids.tolist() == list(range(12))
    assert not skipped
    assert torch.equal(views, torch.stack([SMALL.view(picture(i)) for i in range(12)]))


def test_images_are_read_in_any_order_and_by_processes(shards: Path) -> None:
    source = open_source(shards)
    ids, views, _ = read(source, indices=torch.tensor([11, 0, 6, 5]))
    assert ids.tolist() == [11, 0, 6, 5]
    assert torch.equal(views[0], SMALL.view(picture(11)))
    again = pickle.loads(pickle.dumps(source))  # with a shard open
    assert again.fingerprint == source.fingerprint
    assert torch.equal(read(again, workers=1)[1], read(source)[1])


def test_a_tar_is_walked_once(shards: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = open_source(shards)
    assert len(list(cache.rglob("*.arrow"))) == 3
    walked = []
    walk = tar_index._walk
    monkeypatch.setattr(tar_index, "_walk", lambda file: walked.append(file.name) or walk(file))
    again = open_source(shards)
    assert not walked
    assert again.fingerprint == first.fingerprint
    assert list(again.keys) == list(first.keys)
    assert again.labels is not None
    assert torch.equal(again.labels, first.labels)
    write_tar(shards / "train-001.tar", samples(range(20, 25), cls=by_cls))
    changed = open_source(shards)
    assert walked == ["train-001.tar"]
    assert len(changed) == 13
    assert changed.fingerprint != first.fingerprint
    for file in cache.rglob("*.arrow"):
        file.write_bytes(file.read_bytes()[:50])  # a full disk
    assert open_source(shards).fingerprint == changed.fingerprint
    assert len(walked) == 4


def test_nowhere_to_keep_the_index(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PSI_ENGINE_CACHE", str(shards / "train-000.tar"))
    assert len(open_source(shards / "train-001.tar")) == 4


def test_grouping_by_key(tmp_path: Path) -> None:
    image = encoded(picture(0), "WEBP")
    file = write_tar(
        tmp_path / "a.tar",
        [
            ("__meta__.json", b"{}"),
            ("./x/1.v2.WebP", image),  # the key ends at the first dot of the file name
            ("x.y/1.webp", image),  # and a dot in a folder is none
            ("x.y/1.mask.png", image),  # not the image of its sample
            ("README", b"no kind"),
            ("x.y/2.json", b'{"label": "cat"}'),
            ("x.y/2.jpg", b"not a picture"),
            ("x.y/3.cls", b"dog"),  # a sample without an image
            ("x.y/4.seg.png", image),
            ("x.y/4.json", b"{broken"),
            ("x.y/.5.png", image),
        ],
    )
    source = open_source(file)
    names = ["x/1.v2.WebP", "x.y/1.webp", "x.y/2.jpg", "x.y/3", "x.y/4.seg.png"]
    assert list(source.keys) == [f"a.tar/{name}" for name in names]
    assert source.class_names == ("cat", "dog")
    assert source.labels is not None
    assert source.labels.tolist() == [-1, -1, 0, 1, -1]
    ids, _, skipped = read(source, max_skipped=0.5)
    assert ids.tolist() == [0, 1, 4]
    assert skipped == {
        2: "not an image that PIL can identify",
        3: "the sample holds no image",
    }
    with pytest.raises(CorruptImage, match="holds no image"):
        source.item(3)


def test_labels_in_json_and_names_beside(tmp_path: Path) -> None:
    def note(seed: int) -> bytes:
        return json.dumps({"caption": "x", "cls": seed % 2 if seed else None}).encode()

    write_tar(tmp_path / "a.tar", samples(range(4), json=note))
    (tmp_path / "classnames.txt").write_text("cat\ndog\n")
    source = open_source(tmp_path)
    assert source.labels is not None
    assert source.labels.tolist() == [-1, 1, 0, 1]
    assert source.class_names == ("cat", "dog")
    (tmp_path / "classnames.txt").write_text("cat\n")
    with pytest.raises(DataError, match="label 1 with 1 class names"):
        open_source(tmp_path)
    write_tar(tmp_path / "b.tar", samples(range(2), cls=lambda seed: b"cat"))
    with pytest.raises(DataError, match="labels of .* are of two kinds; got '0' and 'cat'"):
        open_source(tmp_path)
    write_tar(tmp_path / "a.tar", samples(range(4)))
    assert open_source(tmp_path / "a.tar").labels is None


def test_fingerprint_of_shards(shards: Path, tmp_path: Path) -> None:
    seen = [open_source(shards).fingerprint]
    seen.append(open_source(shards / "train-{000..001}.tar").fingerprint)
    (shards / "train-001.tar").rename(shards / "other.tar")
    seen.append(open_source(shards).fingerprint)
    write_tar(shards / "other.tar", samples(range(4, 8), cls=lambda seed: b"1\n"))
    seen.append(open_source(shards).fingerprint)
    assert len(set(seen)) == 4
    os.utime(shards / "other.tar")
    assert open_source(shards).fingerprint == seen[-1]
    changed = bytearray((shards / "other.tar").read_bytes())
    changed[changed.index(b"IDAT") + 9] ^= 1  # a byte of an image
    (shards / "other.tar").write_bytes(changed)
    assert open_source(shards).fingerprint not in seen


def test_a_shard_that_goes_away(shards: Path) -> None:
    source = open_source(shards)
    (shards / "train-001.tar").unlink()
    with pytest.raises(DataError, match=r"train-001\.tar changed or went away while it was read"):
        source.item(5)
    whole = (shards / "train-002.tar").read_bytes()
    (shards / "train-002.tar").write_bytes(whole[:3000])
    with pytest.raises(DataError, match="got its end"):
        source.item(11)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ([("1.txt", b"x")], r"no images in .*got members of kind txt; expected members such as"),
        ([], "got no members"),
        ([("1.png", b"x"), ("1.png", b"y")], r"holds a file twice; got 1\.png and 1\.png"),
        ([("1.png", b"x"), ("1.jpg", b"y")], r"several images; got 1\.png, 1\.jpg"),
    ],
)
def test_bad_content(tmp_path: Path, files: Files, message: str) -> None:
    with pytest.raises(DataError, match=message):
        open_source(write_tar(tmp_path / "a.tar", files))


def test_bad_tars(shards: Path) -> None:
    with pytest.raises(
        DataError, match=r"2 of the 5 shards of .* are missing; got no .*003\.tar, .*004\.tar"
    ):
        open_source(str(shards / "train-{000..004}.tar"))
    file = shards / "train-000.tar"
    whole = file.read_bytes()
    end = len(whole.rstrip(b"\0")) // 512 * 512 + 512
    for cut in (1700, end):  # within a member, and before the end mark
        file.write_bytes(whole[:cut])
        with pytest.raises(DataError, match=r"train-000\.tar (cannot be read as a tar|is cut sho)"):
            open_source(shards)
    with tarfile.open(fileobj=io.BytesIO(whole)) as tar:
        second = tar.getmembers()[1].offset
    file.write_bytes(whole[:second] + b"\1" + whole[second + 1 :])
    with pytest.raises(DataError, match="is broken; got 1 files, then no file header"):
        open_source(shards)
    (shards / "b.tar.gz").write_bytes(b"\x1f\x8b")
    with pytest.raises(DataError, match=r"b\.tar\.gz is compressed; expected plain \.tar"):
        open_source(shards / "b.tar.gz")
    file.unlink()
    with pytest.raises(DataError, match=r"b\.tar\.gz is compressed"):
        open_source(shards)
    (shards / "c.tar").write_bytes(b"\x1f\x8b" + bytes(600))
    with pytest.raises(DataError, match=r"c\.tar cannot be read as a tar"):
        open_source(shards / "c.tar")


def test_braces() -> None:
    assert expand_braces("a-{08..11}.tar") == ["a-08.tar", "a-09.tar", "a-10.tar", "a-11.tar"]
    assert expand_braces("{9..10}{x,y}") == ["9x", "9y", "10x", "10y"]
    assert expand_braces("plain.tar") == ["plain.tar"]
