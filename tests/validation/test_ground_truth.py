"""The command: the demo world in small, its files, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner, Result

from psi_engine.cli import app
from psi_engine.errors import InputError
from psi_engine.validation import GroundTruthConfig
from tests import toy

SMALL = ("--sets", 4, "--units", 4, "--replicates", 20, "--channel-replicates", 2)


def call(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["validate", *map(str, arguments)])


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    out = tmp_path_factory.mktemp("truth") / "out"
    given = (*SMALL, "--max-images", 640, "--top-k", 8, "--bootstrap", 20, "--out", out)
    return out, call("--ground-truth", *given)


def test_the_demo_world_gives_tables_a_figure_and_a_manifest(done: tuple[Path, Result]) -> None:
    out, result = done
    assert result.exit_code == 0, result.stderr
    assert result.stdout == f"{out}\n"
    for shown in ("concept-mix", "planted-units", "semanticlens_polysemanticity", "time:"):
        assert shown in result.stderr
    table, units = (pq.read_table(out / f"{name}.parquet") for name in ("ground_truth", "units"))
    assert pyarrow.csv.read_csv(out / "ground_truth.csv").num_rows == table.num_rows
    assert set(table["half"].to_pylist()) == {"tuning", "held-out", "both"}
    assert set(table["labels"].to_pylist()) == {"none", "full", "coarse"}
    assert {"prompt", "concept"} < set(table["d_level"].to_pylist())
    assert "unrelated-text" in table["d_null"].to_pylist()
    kinds = set(units["kind"].to_pylist())
    assert {"mono", "noise", "noise-value", "noise-projection", "poly2-related"} < kinds
    assert (out / "ground_truth.png").stat().st_size > 10_000
    assert "<svg" in (out / "ground_truth.svg").read_text()
    assert (out / "ground_truth.pdf").read_bytes().startswith(b"%PDF")
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["counts"]["images"] == 640
    assert manifest["counts"]["classes"] == 32
    assert manifest["config"]["sets"] == 4
    assert manifest["versions"]["psi_engine"]
    # textures and shapes are told apart by their labels even by four units a kind
    rows = [r for r in table.to_pylist() if r["measure"] == "Q exact, labels full"]
    best = [r["auroc"] for r in rows if r["contrast"] == "poly2-unrelated / mono"]
    assert min(best) == 1.0


@pytest.mark.slow
def test_a_repeat_is_the_same_and_reads_what_was_kept(done: tuple[Path, Result]) -> None:
    out, _ = done
    before = {name: (out / name).read_bytes() for name in ("units.parquet", "ground_truth.csv")}
    given = (*SMALL, "--max-images", 640, "--top-k", 8, "--bootstrap", 20, "--out", out)
    again = call("--ground-truth", *given, "--json")
    assert again.exit_code == 0, again.stderr
    found = json.loads(again.stdout)
    assert found["ground_truth"] == str(out)
    assert set(found["suites"]) == {"concept-mix", "planted-units"}
    assert all((out / name).read_bytes() == content for name, content in before.items())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "or --ground-truth"),
        (("--ground-truth", "--data", "x"), "data and model belong together; got no --model"),
        (("--ground-truth", "--model", "resnet18"), "got no --data"),
        (("--ground-truth", "--encoder", "timm:x"), "--encoder without --data and --model"),
        (("--ground-truth", "--coarse", "no.json"), "coarse mapping is not there"),
        (("--ground-truth", "--top-k", 3), "top_k is too small"),
        (("--ground-truth", "--sets", 1), "sets is too small"),
        (("--ground-truth", "--bootstrap", 10**9), "bootstrap is too large"),
        (("--ground-truth", "--replicates", 1), "replicates is too small"),
        (("--ground-truth", "--top-k", 31, "--max-images", 640), "too few classes for sets of 31"),
    ],
)
def test_bad_input_is_refused_with_exit_code_2(
    tmp_path: Path, options: tuple[object, ...], message: str
) -> None:
    result = call(*options, "--out", tmp_path / "out")
    assert result.exit_code == 2, result.stderr
    assert message in " ".join(result.stderr.split())
    assert result.stdout == ""
    assert not (tmp_path / "out").exists()  # before any image was seen


def test_a_mapping_of_other_classes_and_images_without_labels_are_refused(tmp_path: Path) -> None:
    (tmp_path / "m.json").write_text('{"chair": "furniture", "table": "furniture"}')
    given = ("--ground-truth", "--max-images", 64, "--coarse", tmp_path / "m.json")
    result = call(*given, "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert "names no class of the data" in result.stderr
    flat = toy.write_images(tmp_path / "flat", 12, labelled=False)
    toys = ("--model", "tests.toy:model", "--encoder", "tests.toy:encoder", "--data", flat)
    result = call("--ground-truth", *toys, "--out", tmp_path / "other")
    assert result.exit_code == 2
    assert "have no labels" in result.stderr


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("kept")
    result = call("--ground-truth", *SMALL, "--out", tmp_path)
    assert result.exit_code == 2
    assert "not a run folder" in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_a_pool_smaller_than_a_unit_is_refused() -> None:
    with pytest.raises(InputError, match="pool is smaller"):
        GroundTruthConfig.demo(pool=10)
