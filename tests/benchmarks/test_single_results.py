"""Benchmarks that compare nothing with a peer write the harness's format too."""

import json
from pathlib import Path

import pytest

from benchmarks import ground_truth, scaling, stages
from psi_engine.config import RunConfig
from psi_engine.pipeline import run
from tests import toy


def written(folder, name):
    result = json.loads((folder / f"{name}.json").read_text())
    header = (folder / f"{name}.csv").read_text().splitlines()[0].split(",")
    assert set(header) == {column for row in result["rows"] for column in row}
    assert {"commit", "cpu", "packages", "peak_bytes"} <= result["facts"].keys()
    return result


def test_ground_truth_keeps_the_rows_of_each_world(tmp_path, monkeypatch):
    row = {"measure": "clarity", "family": "peer", "labels": "none", "unrelated": 0.75}
    found = {"ground_truth": "folder", "suites": {"planted-units": [row]}}
    found |= {"counts": {"images": 3}, "notes": {}, "seconds": {"judging": 1.5}}
    made = []
    monkeypatch.setattr(ground_truth, "run_ground_truth", lambda config, progress: config)
    monkeypatch.setattr(ground_truth, "summarise", lambda config: made.append(config) or found)
    options = ["/not/there", "--runs", "here", "--sets", "7", "--out", str(tmp_path)]
    ground_truth.main(options)
    assert [Path(config.out) for config in made] == [
        Path("here/ground-truth-demo"),
        Path("here/ground-truth"),
    ]
    assert {config.sets for config in made} == {7}
    result = written(tmp_path, "ground-truth")
    assert result["rows"] == [
        {"world": world, "suite": "planted-units", **row} for world in ("demo", "real")
    ]
    assert result["facts"]["worlds"]["real"]["counts"] == {"images": 3}
    assert result["facts"]["settings"]["shared"] == "there"
    made.clear()
    ground_truth.main([*options, "--demo-only"])
    assert len(made) == 1


def test_stages_are_held_against_the_bare_calls(tmp_path):
    images = toy.write_images(tmp_path / "images", 24)
    config = RunConfig.from_options(
        model="tests.toy:model", layers=["conv2"], encoder="tests.toy:encoder", data=str(images),
        out=str(tmp_path / "run"), patch=16, top_k=6, replicates=20, device="cpu",
    )  # fmt: skip
    run(config)
    results = stages.main([str(tmp_path / "run"), "--rounds", "1", "--out", str(tmp_path)])
    assert [(row["stage"], row["items"] > 0) for row in results.rows] == [
        ("mine", True),
        ("embed", True),
    ]
    for row in results.rows:
        assert row["ratio_p50"] * row["alone_seconds_p50"] == pytest.approx(row["seconds"])
    assert written(tmp_path, "stages")["facts"]["settings"]["model"] == "tests.toy:model"


def test_constants_are_those_of_the_page(tmp_path, monkeypatch):
    monkeypatch.setattr(scaling, "mining", lambda: [scaling.Cost("add", "sum", 4, lambda: 1 + 1)])
    monkeypatch.setattr(scaling, "later", list)
    monkeypatch.setattr(scaling.torch, "set_num_threads", lambda count: None)
    scaling.main(["--rounds", "3", "--out", str(tmp_path)])
    cost, state = written(tmp_path, "scaling")["rows"]
    assert (cost["what"], cost["per"]) == ("add", "sum")
    assert 0 <= cost["microseconds_p20"] <= cost["microseconds_p80"]
    # 50 top, bottom and random entries of a value and a site, at least
    assert state["bytes"] > 3 * 50 * 8
