"""``import`` and ``export``: the options arrive, errors exit with 2."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from psi_engine.cli import app
from tests import toy
from tests.adapters import make_files
from tests.adapters.test_into_run import toy_run

CACHE = str(make_files.FILES / "semanticlens" / "aggregate_conv_max-5-relu.safetensors")


def call(*words: str | Path) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words])


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy.write_images(tmp_path_factory.mktemp("images"), 16)


def test_sites_then_scores_then_out_again(images: Path, tmp_path: Path) -> None:
    first = ["import", "semanticlens", CACHE, "--data", images, "--out", tmp_path / "run"]
    first += ["--image-size", "32", "--device", "cpu", "--layer", "layer4"]
    sites = call(*first)
    assert sites.exit_code == 0, sites.output
    assert "sites only; the same command with --encoder" in sites.stderr
    last = call(*first, "--encoder", "tests.toy:encoder", "--replicates", "20", "--json")
    assert last.exit_code == 0, last.output
    summary = json.loads(last.stdout)
    assert [row["layer"] for row in summary["layers"]] == ["layer4"]
    out = call("export", "crp", tmp_path / "run", "--out", tmp_path / "crp", "--top-k", "4")
    assert out.exit_code == 0, out.output
    names = [Path(line).name for line in out.stdout.split()]
    assert names == ["layer4_data.npy", "layer4_rel.npy", "layer4_rf.npy"]


def test_layers_and_json_of_export(images: Path, tmp_path: Path) -> None:
    toy_run(images, tmp_path / "run", layers=["conv1", "conv2"], replicates=20, top_k=8)
    words = ["export", "semanticlens", tmp_path / "run", "--out", tmp_path / "lens"]
    found = call(*words, "--layer", "conv2", "--json")
    assert found.exit_code == 0, found.output
    (cache, _) = json.loads(found.stdout)["files"]
    assert Path(cache).name == "aggregate_conv_max-8-conv2.safetensors"
    again = call(*words, "--layer", "conv2")
    assert again.exit_code == 2
    assert "would be overwritten" in again.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["import", "lens", CACHE], "unknown tool"),
        (["import", "semanticlens", CACHE], "no images and no embeddings"),
        (["import", "crp", "nowhere"], "a file is not there"),
        (["import", "crp", CACHE, "--grid", "14"], "not a grid; got '14'; expected HxW"),
        (["export", "crp", "nowhere"], "not a run folder"),
    ],
)
def test_bad_calls_exit_with_2(tmp_path: Path, words: list[str], message: str) -> None:
    found = call(*words, "--out", tmp_path / "out")
    assert found.exit_code == 2
    assert message in found.stderr
    assert not (tmp_path / "out").exists()
