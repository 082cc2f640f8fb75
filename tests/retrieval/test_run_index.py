"""The index in a run's folder: made once, made again when the scores are others."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

import psi_engine as psi
from psi_engine.artifacts import MANIFEST
from psi_engine.errors import RunFolderError
from psi_engine.prototypes import prototypes
from psi_engine.retrieval import run_index as module
from psi_engine.retrieval.run_index import INDEX, ROWS, open_index
from psi_engine.score_file import score_file
from psi_engine.stored import load_stored


def test_rows_are_the_prototypes_less_the_mean_of_all_pools(copy: Path) -> None:
    stored = load_stored(copy)
    built = open_index(psi.open_run(copy), pytest.fail)
    centre = torch.cat([layer.pool for layer in stored.layers.values()]).double().mean(0)
    assert torch.allclose(built.centre.double(), centre, atol=1e-7)
    start = 0
    for name, layer in stored.layers.items():
        found = prototypes(layer, stored.assignments(name))
        part = built.rows.slice(start, len(found.channel)).to_pydict()
        assert part["layer"] == [name] * len(found.channel)
        assert part["channel"] == found.channel.tolist()
        assert part["cluster"] == found.cluster.tolist()
        apart = torch.nn.functional.normalize(found.vectors.double() - centre, dim=1)
        rows = built.nearest.rows[start : start + len(apart)]
        assert torch.allclose(rows.double(), apart, atol=1e-6)
        start += len(apart)
    assert start == len(built.rows) == len(built.clusters)
    for columns, table, places in (
        (("layer", "channel"), built.channels, built.channel_rows),
        (("layer", "channel", "cluster"), built.clusters, built.cluster_rows),
    ):
        assert table.take(places).select(columns).equals(built.rows.select(columns))


def test_what_was_kept_is_read_and_nothing_else(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built = open_index(psi.open_run(copy), pytest.fail)
    times = [(copy / name).stat().st_mtime_ns for name in (INDEX, ROWS)]
    monkeypatch.setattr(module, "load_stored", lambda _: pytest.fail("made again"))
    kept = open_index(psi.open_run(copy), pytest.fail)
    assert torch.equal(kept.nearest.rows, built.nearest.rows)
    assert torch.equal(kept.centre, built.centre)
    assert kept.rows.equals(built.rows)
    assert times == [(copy / name).stat().st_mtime_ns for name in (INDEX, ROWS)]


def test_other_scores_make_another_index_and_say_so_once(copy: Path) -> None:
    psi.search(copy, "red")
    manifest = json.loads((copy / MANIFEST).read_text())
    manifest["stages"]["score"]["key"] = "another"
    (copy / MANIFEST).write_text(json.dumps(manifest))
    opened = psi.open_run(copy)
    assert opened.search("red").notes == (
        f"{copy} was scored anew: its search index is made again",
    )
    assert opened.search("red").notes == ()
    assert psi.search(copy, "red").notes == ()


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def stripped(path: Path) -> None:
    pq.write_table(pq.read_table(path).replace_schema_metadata(None), path)


def shortened(path: Path) -> None:
    pq.write_table(pq.read_table(path).slice(1), path)


def renamed(path: Path) -> None:
    table = pq.read_table(path)
    names = ["level", "channel", "cluster"]
    pq.write_table(table.rename_columns(names).replace_schema_metadata(table.schema.metadata), path)


@pytest.mark.parametrize(
    ("file", "damage"),
    [(INDEX, cut), (ROWS, cut), (ROWS, stripped), (ROWS, shortened), (ROWS, renamed)],
)
def test_a_damaged_index_is_made_again_and_told_once(
    copy: Path, file: str, damage: Callable[[Path], None]
) -> None:
    expected = psi.search(copy, "red").table
    damage(copy / file)
    found = psi.search(copy, "red")
    assert found.table.equals(expected)
    (note,) = found.notes
    assert note.startswith(f"the search index of {copy} is damaged and made again (")
    assert psi.search(copy, "red").notes == ()


def test_a_killed_write_leaves_no_index_that_is_believed(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    psi.search(copy, "red")
    manifest = json.loads((copy / MANIFEST).read_text())
    manifest["stages"]["score"]["key"] = "another"
    (copy / MANIFEST).write_text(json.dumps(manifest))

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(module, "write_table", killed)
        with pytest.raises(KeyboardInterrupt):
            psi.search(copy, "red")
    assert not (copy / ROWS).exists()
    assert len(psi.search(copy, "red").table) == 10


def test_an_index_that_cannot_be_kept_still_answers(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError("read-only file system")

    expected = psi.search(copy, "red").table
    (copy / ROWS).unlink()
    monkeypatch.setattr(module, "write_table", full)
    found = psi.search(copy, "red")
    assert found.table.equals(expected)
    assert found.notes == (f"the search index of {copy} could not be kept: read-only file system",)


def test_a_scored_file_keeps_no_embeddings(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", embeddings=np.random.default_rng(0).normal(size=(3, 8, 4)))
    score_file(tmp_path / "x.npz", changes={"replicates": 2}, out=tmp_path / "scored")
    with pytest.raises(RunFolderError, match="cannot be searched: it keeps no embeddings"):
        psi.search(tmp_path / "scored", "red")


def test_an_unfinished_run_says_how_to_go_on(copy: Path) -> None:
    manifest = json.loads((copy / MANIFEST).read_text())
    manifest["stages"]["score"]["status"] = "running"
    (copy / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(RunFolderError, match="unfinished: score; run the same psi-engine run"):
        psi.search(copy, "red")


def test_rows_say_whose_they_are(copy: Path) -> None:
    psi.search(copy, "red")
    notes = json.loads(pq.read_schema(copy / ROWS).metadata[b"search"])
    assert len(notes["centre"]) == 48
    assert notes["key"]
