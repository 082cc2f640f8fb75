"""Shards with columns of every kind."""

from __future__ import annotations

import errno
import io
import json
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from psi_engine.data import CorruptImage, Preprocess, open_source
from psi_engine.data.parquet import OPEN_FILES
from psi_engine.errors import DataError
from tests.data.pictures import SMALL, encoded, image_array, picture, read, save, write


def test_parquet_shards_are_read_row_group_by_row_group(tmp_path: Path) -> None:
    write(tmp_path / "train-1.parquet", range(7, 12), [0, 1, 2, -1, 1], list("abc"))
    write(
        tmp_path / "train-0.parquet", range(7), [2, 1, 0, 2, 1, 0, 0], list("abc"),
        paths=["p0.png", None, "", "p3.png", None, None, None], row_group_size=3,
    )  # fmt: skip
    source = open_source(tmp_path)
    assert len(source) == 12
    assert list(source.keys)[:5] == [
        "p0.png", "train-0.parquet#1", "train-0.parquet#2", "p3.png", "train-0.parquet#4",
    ]  # fmt: skip
    assert source.keys[7] == "train-1.parquet#0"
    assert source.class_names == ("a", "b", "c")
    assert source.labels is not None
    assert source.labels.tolist() == [2, 1, 0, 2, 1, 0, 0, 0, 1, 2, -1, 1]
    for index in (11, 0, 6, 3, 2, 7):
        assert torch.equal(source.view(index, SMALL), SMALL.view(picture(index)))
    cut = open_source(tmp_path, max_images=5)
    assert cut.labels is not None
    assert cut.labels.tolist() == [2, 0, 1, 0, 2]
    assert list(cut.keys) == [source.keys[place] for place in (0, 2, 4, 7, 9)]
    with pytest.raises(IndexError):
        cut.view(5, SMALL)


def test_row_groups_beyond_the_cache_are_dropped_and_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "a.parquet", range(6), row_group_size=2)
    source = open_source(tmp_path)
    # groups that fit by what their headers say, but not two of them
    source._groups = [g._replace(size=1) for g in source._groups]  # type: ignore[attr-defined]
    monkeypatch.setattr("psi_engine.data.parquet.CACHE_BYTES", 1)
    for index in (0, 5, 1, 2, 4):
        assert torch.equal(source.view(index, SMALL), SMALL.view(picture(index)))
        assert len(source._cache) == 1  # type: ignore[attr-defined]


def test_parquet_labels_of_other_kinds(tmp_path: Path) -> None:
    file = tmp_path / "a.parquet"
    write(file, range(4), ["newt", None, "carp", "newt"])
    source = open_source(file)
    assert source.labels is not None
    assert source.labels.tolist() == [1, -1, 0, 1]
    assert source.class_names == ("carp", "newt")
    write(file, range(3), [1, None, 0])
    (tmp_path / "classes.json").write_text('["carp", "newt"]')
    source = open_source(file)
    assert source.labels is not None
    assert source.labels.tolist() == [1, -1, 0]
    assert source.class_names == ("carp", "newt")
    write(file, range(2))
    assert open_source(file).labels is None
    write(file, range(2), [0.5, 1.5])
    with pytest.raises(DataError, match="strange type; got a column of double"):
        open_source(file)
    write(file, range(2), [0, 2])
    with pytest.raises(DataError, match="have no name; got label 2 with 2 class names"):
        open_source(file)


def test_parquet_columns_of_other_kinds(tmp_path: Path) -> None:
    file = tmp_path / "a.parquet"
    pq.write_table(pa.table({"photo": [encoded(picture(0))], "id": [3]}), file)
    assert torch.equal(open_source(file).view(0, SMALL), SMALL.view(picture(0)))
    pq.write_table(pa.table({"id": [3], "text": ["x"]}), file)
    with pytest.raises(DataError, match="has no image column; got columns id: int64, text: string"):
        open_source(file)
    pq.write_table(pa.table({"left": [b""], "right": [b""]}), file)
    with pytest.raises(DataError, match="has several image columns"):
        open_source(file)
    pq.write_table(pa.table({"image": pa.array([], pa.binary())}), file)
    with pytest.raises(DataError, match="no rows in"):
        open_source(file)


def test_parquet_images_kept_as_files(tmp_path: Path) -> None:
    save(tmp_path / "files/a.png", 4)
    table = pa.table({"image": image_array([None, None, None], ["files/a.png", "gone.png", None])})
    pq.write_table(table, tmp_path / "a.parquet")
    source = open_source(tmp_path / "a.parquet")
    assert torch.equal(source.view(0, SMALL), SMALL.view(picture(4)))
    with pytest.raises(CorruptImage, match="no bytes in the row"):
        source.view(1, SMALL)
    with pytest.raises(CorruptImage, match="the row holds no image"):
        source.view(2, SMALL)


def test_unlike_shards_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", range(2), [0, 1])
    write(tmp_path / "b.parquet", range(2), ["x", "y"])
    with pytest.raises(DataError, match=r"b\.parquet does not match the first shard"):
        open_source(tmp_path)


def test_fingerprint_of_parquet_sees_every_change(tmp_path: Path) -> None:
    file = tmp_path / "a.parquet"
    seen = []
    for start, labels in ((0, [0, 1, 0, 1]), (1, [0, 1, 0, 1]), (0, [0, 0, 0, 0])):
        write(file, range(start, start + 4), labels)
        seen.append(open_source(file).fingerprint)
        seen.append(open_source(file, max_images=2).fingerprint)
    file.rename(tmp_path / "b.parquet")
    seen.append(open_source(tmp_path / "b.parquet").fingerprint)
    assert len(set(seen)) == len(seen)
    assert open_source(tmp_path / "b.parquet", max_images=99).fingerprint == seen[-1]


def test_real_parquet(shared: Path) -> None:
    folder = shared / "data" / "tiny-imagenet"
    source = open_source(folder)
    assert len(source) == 20_000
    listed = json.loads((folder / "classes.json").read_text())
    assert source.class_names == tuple(row["name"] for row in listed)
    assert source.labels is not None
    assert int(source.labels.min()) >= 0
    second = pq.read_table(folder / "train-00001-of-00004.parquet").slice(0, 1).to_pylist()[0]
    assert source.keys[5000] == second["image"]["path"]
    assert int(source.labels[5000]) == second["label"]
    expected = Image.open(io.BytesIO(second["image"]["bytes"])).convert("RGB")
    view = source.view(5000, Preprocess(image_size=224, resize=224))
    resized = np.asarray(expected.resize((224, 224), Image.Resampling.BILINEAR))
    assert np.array_equal(view.permute(1, 2, 0).numpy(), resized)


def test_many_files_are_not_all_held_open(tmp_path: Path) -> None:
    descriptors = Path("/proc/self/fd")
    if not descriptors.is_dir():
        pytest.skip("open files can be counted on Linux only")
    for number in range(40):
        write(tmp_path / f"{number:02d}.parquet", range(number, number + 1), [number % 2])
    before = len(list(descriptors.iterdir()))
    source = open_source(tmp_path)
    assert len(list(descriptors.iterdir())) <= before
    _, views, _ = read(source, batch_size=7)
    assert len(list(descriptors.iterdir())) <= before + 2 * OPEN_FILES
    assert torch.equal(views[33], SMALL.view(picture(33)))


def test_a_large_row_group_is_read_in_blocks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("psi_engine.data.parquet.CACHE_BYTES", 4 << 20)
    monkeypatch.setattr("psi_engine.data.parquet.BLOCK_BYTES", 1 << 20)
    noise = np.random.default_rng(0).integers(0, 256, (48, 1 << 19), dtype=np.uint8)
    contents: list[bytes | None] = [row.tobytes() for row in noise]
    contents[:3] = [encoded(picture(i)) for i in range(3)]
    table = pa.table({"image": image_array(contents)})
    pq.write_table(table, tmp_path / "a.parquet", write_batch_size=4)
    del table
    source = open_source(tmp_path / "a.parquet")
    start, peak = pa.total_allocated_bytes(), 0
    for index in range(len(source)):
        if index < 3:
            assert torch.equal(source.view(index, SMALL), SMALL.view(picture(index)))
        else:
            with pytest.raises(CorruptImage):
                source.item(index)
        peak = max(peak, pa.total_allocated_bytes() - start)
    assert peak < 12 << 20  # of 24
    for index in (2, 0, 1):  # back, within and before the block
        assert torch.equal(source.view(index, SMALL), SMALL.view(picture(index)))


def test_a_file_that_breaks_while_it_is_read(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", range(6), compression="none")
    source = open_source(tmp_path / "a.parquet")
    size = (tmp_path / "a.parquet").stat().st_size
    (tmp_path / "a.parquet").write_bytes(b"PAR1" + bytes(size - 4))
    with pytest.raises(DataError, match=r"a\.parquet cannot be read"):
        source.item(0)


def test_fingerprint_of_parquet_sees_an_exchange_within_a_row_group(tmp_path: Path) -> None:
    file = tmp_path / "a.parquet"
    seen = []
    names: list[list[str | None]] = [["x", "y", "z", "w"], ["x", "z", "y", "w"]]
    for order in ([0, 1, 2, 3], [0, 2, 1, 3]):
        contents: list[bytes | None] = [bytes([seed]) * 900 for seed in order]
        for labels in ([0, 1, 2, 0], [0, 2, 1, 0]):
            for paths in names:
                columns = {"image": image_array(contents, paths), "label": labels}
                pq.write_table(pa.table(columns), file, compression="none", use_dictionary=False)
                seen.append((file.stat().st_size, open_source(file).fingerprint))
    assert len({size for size, _ in seen}) == 1
    assert len({fingerprint for _, fingerprint in seen}) == 8
    os.utime(file, (1e9, 1e9))
    assert open_source(file).fingerprint == seen[-1][1]


def test_rows_name_files_of_their_data_set_alone(tmp_path: Path) -> None:
    save(tmp_path / "set/files/a.png", 4)
    save(tmp_path / "secret.png", 5)
    os.mkfifo(tmp_path / "set/pipe.png")
    (tmp_path / "set/link.png").symlink_to("../secret.png")
    inside = tmp_path / "set/files/a.png"
    paths = ["files/../files/a.png", str(inside), str(tmp_path / "secret.png"), "../secret.png",
             "link.png", "pipe.png", "files", "x\0.png"]  # fmt: skip
    table = pa.table({"image": image_array([None] * len(paths), list(paths))})
    pq.write_table(table, tmp_path / "set/a.parquet")
    source = open_source(tmp_path / "set/a.parquet")
    for index in (0, 1):
        assert torch.equal(source.view(index, SMALL), SMALL.view(picture(4)))
    for index in (2, 3, 4, 7):
        with pytest.raises(CorruptImage, match="which names a file outside: "):
            source.item(index)
    for index in (5, 6):
        with pytest.raises(CorruptImage, match="no bytes in the row and no file "):
            source.item(index)


def test_a_failing_disk_is_no_corrupt_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path / "a.png", 4)
    pq.write_table(pa.table({"image": image_array([None], ["a.png"])}), tmp_path / "a.parquet")
    source = open_source(tmp_path / "a.parquet")

    def fail(path: Path) -> bytes:
        raise OSError(errno.EIO, "a fault")

    monkeypatch.setattr(Path, "read_bytes", fail)
    with pytest.raises(DataError, match=r"a\.png cannot be read any more; got .*a fault"):
        source.item(0)
