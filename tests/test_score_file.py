"""Parquet columns of lists become arrays; the whole of `score FILE` stands in test_cli.py."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

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
