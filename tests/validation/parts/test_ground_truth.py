"""Ground truth as a part: the run's own settings, and why it cannot be had."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from psi_engine.errors import RunFolderError
from psi_engine.stored import load_stored
from psi_engine.validation.ground_truth import GroundTruthConfig
from psi_engine.validation.part import Context, Options
from psi_engine.validation.parts import ground_truth
from psi_engine.validation.parts.ground_truth import PART, patches_of_a_set


def labelled(context: Context, labels: torch.Tensor | None) -> Context:
    return replace(context, stored=replace(context.stored, labels=labels))


def test_what_the_images_lack_is_told(context: Context) -> None:
    assert PART.needs(context) == "the images are of 3 classes, fewer than 4"
    assert PART.needs(labelled(context, None)) == "the images have no labels"
    assert PART.needs(labelled(context, torch.full((90,), -1))) == "the images have no labels"
    few = labelled(context, torch.arange(40) % 4)
    assert "too few images" in str(PART.needs(few))  # 10 a class, 5 for sets, 3 a set
    assert PART.needs(labelled(context, torch.arange(48) % 4)) is None


def test_sets_are_as_large_as_classes_allow(context: Context) -> None:
    assert patches_of_a_set(labelled(context, torch.arange(240) % 4).stored) == 12  # the run's K
    assert patches_of_a_set(labelled(context, torch.arange(80) % 4).stored) == 6  # 10 for sets


def test_settings_are_the_runs(context: Context, monkeypatch: Any) -> None:
    asked: list[GroundTruthConfig] = []
    table = pa.table({"suite": ["planted-units"], "auroc": [0.9]})

    def stand_in(config: GroundTruthConfig, progress: Any) -> Path:
        asked.append(config)
        Path(config.out).mkdir(parents=True, exist_ok=True)
        pq.write_table(table, Path(config.out) / ground_truth.TABLE)
        return Path(config.out)

    d, ends = "D margin concept text-rotation", {"unrelated_low": 0.4, "unrelated_high": 0.8}
    other = f"PSI: S rotation, {d}, labels full"
    rows = [
        {"measure": "peer", "labels": "none", "unrelated": 0.99} | ends,
        {"measure": other, "labels": "full", "unrelated": 0.9} | ends,
        {"measure": f"PSI: S pool, {d}, labels full", "labels": "full", "unrelated": 0.7} | ends,
        {"measure": "PSI: S pool, labels full", "labels": "full", "unrelated": 0.2} | ends,
        {"measure": f"PSI: S pool, {d}, labels none", "labels": "none", "unrelated": 0.5} | ends,
        {"measure": f"PSI: S pool, {d}, labels coarse", "labels": "coarse"},
    ]
    summary = {"notes": {"planted-units": ["told"]}, "suites": {"planted-units": rows}}
    monkeypatch.setattr(ground_truth, "run_ground_truth", stand_in)
    monkeypatch.setattr(ground_truth, "summarise", lambda folder: summary)
    given = replace(labelled(context, torch.arange(80) % 4), options=Options(sets=7, seed=3))
    result = PART.compute(given)
    config = context.stored.config
    got = asked[0]
    assert (got.data, got.model, got.encoder) == (config.data, config.model, config.encoder)
    assert (got.top_k, got.sets, got.seed, got.replicates) == (6, 7, 3, 60)
    assert got.out == str(context.folder)
    assert result.tables["areas"] == table
    # not the best of all rows
    assert result.headline == (
        "planted-units: worst contrast of PSI, no labels, 0.500 [0.400, 0.800] on held-out classes",
        "planted-units: worst contrast of PSI, labels, 0.700 [0.400, 0.800] on held-out classes",
    )
    assert ground_truth.preset_rows(rows[3:4]) == rows[3:4]  # an encoder without texts
    assert ground_truth.preset_rows(rows[:2]) == []
    assert result.notes[0] == "planted-units: told"
    assert "the run's channels have 12" in result.notes[1]
    assert len(result.notes) == 2
    named = replace(given.stored, config=replace(config, concepts="words.txt"))
    result = PART.compute(replace(given, stored=named))
    assert result.notes[2].endswith("by the classes of the images, not by the run's words.txt")


def test_other_inputs_than_the_runs_are_refused(context: Context, toy_copy: Path) -> None:
    path = toy_copy / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["fingerprints"]["data"] = "0" * 64
    path.write_text(json.dumps(manifest))
    with pytest.raises(RunFolderError, match="made with other data"):
        PART.compute(replace(context, stored=load_stored(toy_copy)))
    assert not context.folder.exists()


@pytest.mark.slow
def test_on_the_demo_world(tmp_path: Path) -> None:
    from psi_engine import demo
    from psi_engine.config import RunConfig
    from psi_engine.pipeline import run
    from psi_engine.validation import validate_run

    options = dict(demo.RUN_OPTIONS) | {"layers": ["stage4"], "channels": ["stage4:0-7"]}
    made = run(RunConfig.from_options(**options, out=str(tmp_path / "run"), subsamples=0))
    found = validate_run(made.path, ["ground-truth"], Options(sets=20, units=20, bootstrap=50))
    assert found[0].status == "done", found
    assert (made.path / "figures" / "ground-truth.svg").is_file()
