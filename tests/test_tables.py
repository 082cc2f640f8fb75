"""What a run folder says beside the scores: the nulls' shapes, and each patch's silhouette."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from sklearn.metrics import silhouette_samples

import psi_engine as psi
from psi_engine import artifacts
from psi_engine.config import ScoreConfig
from psi_engine.errors import RunFolderError
from psi_engine.score_file import score_file
from psi_engine.scores.score import score
from psi_engine.stored import load_stored
from psi_engine.tables import null_table
from tests import toy

SCHEMA = {
    "layer": pa.string(),
    "channel": pa.int64(),
    "component": pa.string(),
    "null": pa.string(),
    "replicates": pa.int32(),
    "quantiles": pa.list_(pa.float32()),
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> psi.Run:
    images = toy.write_images(tmp_path_factory.mktemp("images"), 48)
    options = {**toy.RUN_OPTIONS, "data": str(images), "out": str(tmp_path_factory.mktemp("run"))}
    return psi.run(psi.RunConfig.from_options(**options, subsamples=0, d_null="pool"))


def test_every_scored_channel_has_its_nulls_and_no_other(run: psi.Run) -> None:
    table = run.nulls
    assert {field.name: field.type for field in table.schema} == SCHEMA
    scored = [
        (row["layer"], row["channel"])
        for row in run.channels.to_pylist()
        if row["status"] != "failed"
    ]
    rows = table.to_pylist()
    assert [(row["layer"], row["channel"]) for row in rows[::3]] == scored
    assert [row["component"] for row in rows] == ["s", "q", "d"] * len(scored)
    assert {(row["component"], row["null"]) for row in rows} == {
        ("s", "pool"), ("q", "permutation"), ("d", "pool"),
    }  # fmt: skip
    assert {row["replicates"] for row in rows} == {40}
    assert {len(row["quantiles"]) for row in rows} == {41}


def test_the_nulls_are_those_of_the_stored_layers_scored_again(run: psi.Run) -> None:
    stored = load_stored(run.path)
    found = run.nulls.to_pylist()
    for layer in stored.layers:
        scores = stored.score(layer)
        for row in (row for row in found if row["layer"] == layer):
            name = f"{row['component']}_null_quantiles"
            assert row["quantiles"] == getattr(scores, name)[row["channel"]].tolist()


def test_silhouettes_are_those_of_scikit_learn(run: psi.Run) -> None:
    sites = run.sites.filter(pa.compute.equal(run.sites["layer"], "conv2"))
    assert sites["silhouette"].type == pa.float32()
    layer = load_stored(run.path).layers["conv2"]
    rows = [row for row in sites.to_pylist() if row["channel"] == 2]
    assert all(row["silhouette"] is None for row in rows if row["kind"] != "top")
    top = [row for row in rows if row["kind"] == "top"]
    assert [row["rank"] for row in top] == [*range(12)]
    clusters = [row["cluster"] for row in top]
    want = silhouette_samples(layer.embeddings[2].double().numpy(), clusters, metric="cosine")
    assert [row["silhouette"] for row in top] == pytest.approx(want.tolist(), abs=1e-5)
    dead = [row for row in sites.to_pylist() if row["channel"] == 7]
    assert dead
    assert all(row["silhouette"] is None for row in dead)


def test_a_scored_file_has_them_too(tmp_path: Path) -> None:
    z = np.random.default_rng(0).standard_normal((3, 12, 8)).astype(np.float32)
    z[1] = np.nan
    np.savez(tmp_path / "z.npz", embeddings=z)
    run = score_file(tmp_path / "z.npz", changes={"replicates": 30})
    rows = run.nulls.to_pylist()
    assert [(row["channel"], row["component"]) for row in rows] == [(0, "s"), (2, "s")]
    sites = run.sites.to_pylist()
    assert all((row["silhouette"] is None) == (row["channel"] == 1) for row in sites)


def test_rows_of_one_channel_stand_together_whatever_the_order() -> None:
    z = torch.randn(4, 10, 6, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(40).reshape(4, 10) % 3
    scores = score(z, labels=labels, config=ScoreConfig(replicates=20))
    table = null_table("a", torch.tensor([9, 4, 70, 5]), scores)
    assert table["channel"].to_pylist() == [4, 4, 5, 5, 9, 9, 70, 70]
    assert table["component"].to_pylist() == ["s", "q"] * 4
    for row in table.to_pylist():
        place = [9, 4, 70, 5].index(row["channel"])
        values = getattr(scores, f"{row['component']}_null_quantiles")[place]
        assert row["quantiles"] == values.tolist()
    none = score(torch.full((2, 10, 6), torch.nan), pool=z[0], config=ScoreConfig(replicates=20))
    empty = null_table("a", torch.arange(2), none)
    assert len(empty) == 0
    assert empty.schema == table.schema


def test_a_run_of_an_earlier_version_says_how_to_get_them(run: psi.Run, tmp_path: Path) -> None:
    for path in run.path.glob("*.*"):
        if path.name != "nulls.parquet":
            (tmp_path / path.name).write_bytes(path.read_bytes())
    old = artifacts.open_run(tmp_path)
    assert old.channels.equals(pq.read_table(run.path / "channels.parquet"))
    with pytest.raises(RunFolderError, match=r"nulls\.parquet is not there .*same psi-engine run"):
        _ = old.nulls
