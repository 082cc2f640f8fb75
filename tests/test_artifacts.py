from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pytest
import torch

from psi_engine import artifacts
from psi_engine.config import MineConfig, ScoreConfig
from psi_engine.errors import InputError, RunFolderError
from psi_engine.types import (
    ActivationShape,
    ActivationStats,
    LayerSites,
    Mined,
    PoolSites,
    SiteSet,
)

IDENTITY = {"model": "toy", "weights": "w", "data": "d"}


def test_atomic_leaves_nothing_behind_on_failure(tmp_path: Path) -> None:
    target = tmp_path / "table.parquet"
    target.write_text("old")
    with pytest.raises(RuntimeError), artifacts.atomic(target) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_fingerprint_sees_every_setting_and_the_order() -> None:
    base = artifacts.fingerprint("mine", MineConfig())
    assert base == artifacts.fingerprint("mine", MineConfig())
    assert base != artifacts.fingerprint("mine", MineConfig(top_k=49))
    assert artifacts.fingerprint("a", "b") != artifacts.fingerprint("b", "a")
    assert artifacts.fingerprint(torch.arange(3)) != artifacts.fingerprint(torch.arange(4))


def test_fingerprint_refuses_what_it_cannot_hash() -> None:
    with pytest.raises(InputError, match="object"):
        artifacts.fingerprint(object())


def test_tensor_fingerprint_sees_dtype_shape_and_bytes() -> None:
    x = torch.arange(6, dtype=torch.int32)
    prints = {
        artifacts.tensor_fingerprint(y) for y in (x, x.reshape(2, 3), x.view(torch.float32), x + 1)
    }
    assert len(prints) == 4
    assert artifacts.tensor_fingerprint(x.reshape(2, 3).T.T) == artifacts.tensor_fingerprint(
        x.reshape(2, 3)
    )


def test_stage_is_done_only_under_its_key_and_with_its_files(tmp_path: Path) -> None:
    folder = artifacts.RunFolder(tmp_path / "run", IDENTITY)
    folder.begin("mine", "k1")
    assert not folder.is_done("mine", "k1")
    artifacts.write_table(folder.path / "a.parquet", pa.table({"x": [1]}))
    folder.finish("mine", ["a.parquet"], 0.5, images=7)
    again = artifacts.RunFolder(tmp_path / "run", IDENTITY)
    assert again.is_done("mine", "k1")
    assert again.fact("mine", "images") == 7
    assert not again.is_done("mine", "k2")
    again.discard("a.parquet")
    assert not again.is_done("mine", "k1")


@pytest.mark.parametrize("part", ["model", "weights", "data"])
def test_folder_of_another_run_is_refused_and_untouched(tmp_path: Path, part: str) -> None:
    artifacts.RunFolder(tmp_path, IDENTITY).save()
    (tmp_path / "mining.partial").mkdir()
    (tmp_path / "mining.partial/0001-00000.safetensors").write_text("hours of work")
    before = (tmp_path / "manifest.json").read_bytes()
    with pytest.raises(RunFolderError, match=rf"another run.*got {part} other.*expected {part} "):
        artifacts.RunFolder(tmp_path, {**IDENTITY, part: "other"})
    assert (tmp_path / "manifest.json").read_bytes() == before


def test_a_folder_in_which_nothing_was_made_is_taken_over(tmp_path: Path) -> None:
    """A run that is refused for its memory leaves its settings, and no results under them."""
    other = {**IDENTITY, "data": "other"}
    folder = artifacts.RunFolder(tmp_path, IDENTITY)
    folder.describe(config={"memory": 1})
    folder.begin("mine", "k")
    (tmp_path / artifacts.CONFIG).write_text("memory = 1")
    (tmp_path / "mining.partial").mkdir()
    artifacts.RunFolder(tmp_path, IDENTITY)  # the same run goes on
    taken = artifacts.RunFolder(tmp_path, other)
    assert taken.manifest["identity"] == other
    assert taken.manifest["stages"] == {}
    assert "config" not in taken.manifest
    taken.begin("mine", "k")
    taken.finish("mine", [], 0.1)
    with pytest.raises(RunFolderError, match="another run"):
        artifacts.RunFolder(tmp_path, IDENTITY)


def test_foreign_folders_are_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(RunFolderError, match="not a run folder"):
        artifacts.RunFolder(tmp_path, IDENTITY)
    with pytest.raises(RunFolderError, match="is a file"):
        artifacts.RunFolder(tmp_path / "thesis.tex", IDENTITY)
    with pytest.raises(RunFolderError, match="not a run folder"):
        artifacts.open_run(tmp_path)


def test_other_schema_and_broken_manifest_are_refused(tmp_path: Path) -> None:
    manifest = tmp_path / "manifest.json"
    manifest.write_text(json.dumps({"schema_version": 0}))
    with pytest.raises(RunFolderError, match="another version.*got schema 0.*expected schema 1"):
        artifacts.RunFolder(tmp_path, IDENTITY)
    with pytest.raises(RunFolderError, match="another version"):
        artifacts.open_run(tmp_path)
    manifest.write_text("{")
    with pytest.raises(RunFolderError, match="manifest cannot be read"):
        artifacts.open_run(tmp_path)


def test_unfinished_run_says_what_is_missing(tmp_path: Path) -> None:
    folder = artifacts.RunFolder(tmp_path, IDENTITY)
    folder.begin("embed", "k")
    with pytest.raises(RunFolderError, match=r"channels\.parquet is not there.*unfinished: embed"):
        _ = artifacts.open_run(tmp_path).channels


def test_mined_sites_come_back_bit_for_bit(tmp_path: Path) -> None:
    values = torch.tensor([[3.0, 1.0], [2.0, torch.nan]])
    ids = torch.tensor([[5, 1], [2, -1]])
    place = torch.zeros(2, 2, dtype=torch.int32)
    sites = SiteSet(values, ids, place, place)
    floats, ints = torch.rand(2, dtype=torch.float64), torch.arange(2)
    stats = ActivationStats(values[:, 0], values[:, 0], floats, floats, floats, ints, ints)
    pool = PoolSites(torch.arange(3), torch.zeros(3).int(), torch.zeros(3).int())
    layer = LayerSites(
        "a.b", ActivationShape("map", 4, (7, 7)), torch.tensor([1, 3]), sites, sites, sites, pool,
        stats, 9,
    )  # fmt: skip
    artifacts.write_mined(tmp_path / "m.safetensors", Mined({"a.b": layer}))
    back = artifacts.read_mined(tmp_path / "m.safetensors")["a.b"]
    assert back.shape == layer.shape
    assert back.images == 9
    assert torch.equal(back.channels, layer.channels)
    assert torch.equal(back.top.values.view(torch.int32), values.view(torch.int32))
    assert torch.equal(back.bottom.image_ids, ids)
    assert torch.equal(back.pool.image_ids, pool.image_ids)
    assert torch.equal(back.stats.variance, floats)


def test_every_file_can_be_read_by_whom_the_umask_lets(tmp_path: Path) -> None:
    artifacts.write_json(tmp_path / "a.json", {})
    artifacts.write_tensors(tmp_path / "a.safetensors", {"x": torch.zeros(2)}, {})
    assert len({path.stat().st_mode for path in tmp_path.iterdir()}) == 1


def test_score_settings_are_written_as_json(tmp_path: Path) -> None:
    artifacts.write_json(tmp_path / "a.json", {"config": ScoreConfig(), "path": tmp_path})
    read = json.loads((tmp_path / "a.json").read_text())
    assert read["config"]["k_max"] == 5
    assert read["path"] == str(tmp_path)
