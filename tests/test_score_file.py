"""Parquet columns of lists become arrays; the whole of `score FILE` stands in test_cli.py."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import save_file

from psi_engine.errors import InputError
from psi_engine.score_file import _read, score_file

Z = np.random.default_rng(0).standard_normal((3, 5, 4)).astype(np.float32)


def write(path, **columns):
    pq.write_table(pa.table(columns), path)
    return path


@pytest.mark.parametrize(
    "kind",
    [
        pa.list_(pa.list_(pa.float32())),
        pa.large_list(pa.large_list(pa.float32())),
        pa.list_(pa.list_(pa.float32(), 4), 5),
        pa.list_(pa.list_(pa.float64())),
    ],
    ids=str,
)
def test_lists_of_lists_are_an_array(tmp_path, kind):
    labels = np.arange(15).reshape(3, 5)
    path = write(
        tmp_path / "z.parquet",
        embeddings=pa.array(Z.tolist(), kind),
        labels=pa.array(labels.tolist()),
    )
    got = _read(path)
    assert got["embeddings"].shape == (3, 5, 4)
    assert np.array_equal(got["embeddings"], Z)
    assert np.array_equal(got["labels"], labels)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([[[1.0, 2.0]], [[1.0, 2.0], [3.0, 4.0]]], "lists of 2 lengths .*: pad them .* a mask"),
        ([[[1.0, 2.0]], None], r"1 missing\)"),
        ([[[1.0, None]], [[2.0, 3.0]]], "1 missing numbers"),
    ],
)
def test_ragged_or_missing_numbers_are_refused(tmp_path, rows, message):
    path = write(
        tmp_path / "z.parquet", embeddings=pa.array(rows, pa.list_(pa.list_(pa.float64())))
    )
    with pytest.raises(InputError, match=message):
        score_file(path)


def half(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return path


def files(tmp_path):
    """Write the same embeddings as every kind of file."""
    np.savez(tmp_path / "z.npz", embeddings=Z)
    save_file({"embeddings": Z}, tmp_path / "z.safetensors")
    write(tmp_path / "z.parquet", embeddings=pa.array(Z.tolist()))
    return [tmp_path / f"z.{kind}" for kind in ("npz", "safetensors", "parquet")]


def test_cut_and_empty_files_are_refused_with_nothing_written(tmp_path):
    for path in files(tmp_path):
        for broken in (half(path), path.with_stem("empty")):
            if broken.stem == "empty":
                broken.write_bytes(b"")
            with pytest.raises(InputError, match=r"cannot be read; .*a whole .*cut off"):
                score_file(broken, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"embeddings": np.array([{}], dtype=object)}, "never unpickled"),
        ({"embeddings": np.array([["a"]])}, "does not hold numbers"),
        ({"embeddings": Z[0]}, r"wrong rank; got \(5, 4\)"),
        ({"embeddings": Z[:, :3]}, "too few patches; got 3"),
        ({"embeddings": Z[:0]}, "embeddings are empty"),
        ({"vectors": Z}, "no embeddings in the file; got z.npz with vectors"),
        ({"embeddings": Z, "labels": np.zeros((3, 4), int)}, r"wrong shape; got \(3, 4\)"),
        ({"embeddings": Z, "labels": np.zeros((3, 5))}, "labels must be integers"),
        ({"embeddings": Z, "text_embeddings": np.ones((6, 5))}, "do not fit the embeddings"),
        ({"embeddings": Z, "pool": np.ones((9, 7))}, "pool does not fit"),
    ],
)
def test_unfit_arrays_are_refused_with_nothing_written(tmp_path, arrays, message):
    np.savez(tmp_path / "z.npz", **arrays)
    with pytest.raises(InputError, match=message):
        score_file(tmp_path / "z.npz", out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_array_under_the_name_of_an_archive_is_told(tmp_path):
    with open(tmp_path / "z.npz", "wb") as file:
        np.save(file, Z)
    with pytest.raises(InputError, match=r"a single \.npy array"):
        score_file(tmp_path / "z.npz")
