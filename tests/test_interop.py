"""A run folder in the hands of other libraries: pandas, Polars, DuckDB, Arrow."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import duckdb
import numpy as np
import pandas as pd
import polars as pl
import pytest
import torch

import psi_engine as psi
from psi_engine.config import ScoreConfig
from psi_engine.errors import InputError
from tests import toy


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> psi.Run:
    images = toy.write_images(tmp_path_factory.mktemp("images"), 30)
    options = {**toy.RUN_OPTIONS, "data": str(images), "out": str(tmp_path_factory.mktemp("run"))}
    return psi.run(psi.RunConfig.from_options(**options, subsamples=0))


def best(run: psi.Run) -> list[tuple[str, int, float]]:
    rows = [row for row in run.channels.to_pylist() if row["log_psi"] is not None]
    rows.sort(key=lambda row: -row["log_psi"])
    return [(row["layer"], row["channel"], row["log_psi"]) for row in rows[:3]]


def test_duckdb_reads_the_files_and_the_tables(run: psi.Run) -> None:
    path = run.path
    order = "ORDER BY log_psi DESC LIMIT 3"
    found = duckdb.sql(
        f"SELECT layer, channel, log_psi FROM '{path}/channels.parquet' "
        f"WHERE log_psi IS NOT NULL {order}"
    )
    assert found.fetchall() == best(run)
    channels = run.channels
    found = duckdb.sql(
        f"SELECT layer, channel, log_psi FROM channels WHERE log_psi IS NOT NULL {order}"
    )
    assert found.fetchall() == best(run)
    assert len(channels) == 13
    joined = duckdb.sql(
        f"SELECT layer, channel, count(*) AS n FROM '{path}/clusters.parquet' "
        f"JOIN '{path}/channels.parquet' USING (layer, channel) GROUP BY ALL ORDER BY ALL"
    ).fetchall()
    assert [n for *_, n in joined] == [
        row["n_clusters"] for row in run.channels.to_pylist() if row["n_clusters"]
    ]
    medians = duckdb.sql(
        f"SELECT component, quantiles[21] FROM '{path}/nulls.parquet' "
        "WHERE layer = 'conv2' AND channel = 3 ORDER BY component"
    ).fetchall()
    want = {
        row["component"]: row["quantiles"][20]
        for row in run.nulls.to_pylist()
        if (row["layer"], row["channel"]) == ("conv2", 3)
    }
    assert dict(medians) == want


def test_polars_reads_the_files_and_the_tables(run: psi.Run) -> None:
    lazy = (
        pl.scan_parquet(run.path / "channels.parquet")
        .filter(pl.col("log_psi").is_not_null())
        .sort("log_psi", descending=True)
        .select("layer", "channel", "log_psi")
        .head(3)
    )
    assert lazy.collect().rows() == best(run)
    frame = pl.from_arrow(run.channels)
    assert isinstance(frame, pl.DataFrame)
    assert frame.drop_nulls("log_psi").select("layer", "channel", "log_psi").sort(
        "log_psi", descending=True
    ).head(3).rows() == best(run)
    concepts = pl.scan_parquet(run.path / "clusters.parquet").explode("concepts").unnest("concepts")
    assert concepts.collect()["similarity"].drop_nulls().is_between(-1, 1).all()


def test_pandas_gets_the_numbers_of_the_scores() -> None:
    z = torch.randn(5, 12, 8, generator=torch.Generator().manual_seed(0))
    z[3] = torch.nan
    scores = psi.score(z, config=ScoreConfig(replicates=20), device="cpu")
    frame = scores.to_pandas()
    assert isinstance(frame, pd.DataFrame)
    assert np.array_equal(frame["psi"].to_numpy(), scores.psi.numpy(), equal_nan=True)
    assert frame["verdict"].tolist() == list(scores.verdict)
    assert frame["n_clusters"].tolist() == scores.n_clusters.tolist()
    assert frame["q"].isna().all()


def test_without_pandas_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    z = torch.randn(4, 12, 8, generator=torch.Generator().manual_seed(0))
    scores = psi.score(z, config=ScoreConfig(replicates=20), device="cpu")
    monkeypatch.setattr("psi_engine.types.find_spec", lambda name: None)
    with pytest.raises(InputError, match="pandas is not installed; pip install .pandas"):
        scores.to_pandas()


def test_a_table_needs_neither_pandas_nor_polars(run: psi.Run) -> None:
    """Arrow alone serves ``run.channels``: the core install has no data-frame library."""
    code = (
        "import sys\n"
        "class Absent:\n"
        "    def find_spec(self, name, *rest):\n"
        "        if name in ('pandas', 'polars', 'duckdb'): raise ModuleNotFoundError(name)\n"
        "sys.meta_path.insert(0, Absent())\n"
        "import psi_engine as psi\n"
        f"run = psi.open_run({str(run.path)!r})\n"
        "print(len(run.channels), len(run.sites) > 0, len(run.clusters) > 0, len(run.nulls))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["13", "True", "True", str(len(run.nulls))]


def test_folders_with_odd_names_are_read_too(run: psi.Run, tmp_path: Path) -> None:
    home = tmp_path / "a b's [1]"
    home.mkdir()
    for path in run.path.glob("*.*"):
        (home / path.name).write_bytes(path.read_bytes())
    assert psi.open_run(home).channels.equals(run.channels)
