from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from psi_engine.artifacts import Run, open_run, write_json, write_table
from psi_engine.config import RunConfig
from psi_engine.errors import InputError, RunFolderError
from psi_engine.pipeline import run as run_pipeline
from psi_engine.report.page import site
from psi_engine.report_run import channel_means, report
from psi_engine.retrieval.search import search
from psi_engine.score_file import score_file
from psi_engine.stored import load_stored
from tests.toy import RUN_OPTIONS, write_images


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def received(path: Path) -> dict:
    text = path.read_text(encoding="utf-8").partition(",")[2]
    return json.loads(text.removesuffix(");\n"))


def test_a_report_is_whole_and_states_its_size(toy_run: Run, toy_report: Path) -> None:
    assert toy_report == toy_run.path / "report"
    names = files(toy_report)
    assert {"index.html", "main.js", "style.css", "data/core.js", "data/channels-0.js"} <= {*names}
    assert not [name for name in names if name.endswith((".tmp", ".j2"))]
    record = json.loads(names["report.json"])
    assert record["size"] == sum(len(x) for n, x in names.items() if n != "report.json")
    core = received(toy_report / "data/core.js")
    assert 0 < record["size"] - core["size"] <= len(names["data/core.js"])
    page = names["index.html"].decode()
    for name in (*site.SCRIPTS, *site.STYLES):
        assert f'"{name}"' in page
        assert name in names
    assert {n for n in names if n.endswith(".js") and "/" not in n} == {*site.SCRIPTS, "main.js"}


def test_figures_for_papers_stand_beside_it(toy_run: Run, toy_report: Path) -> None:
    found = {path.name for path in (toy_run.path / "figures").glob("run-*")}
    drawn = ("psi", "verdicts", "components", "nulls")
    assert found == {f"run-{name}.{kind}" for name in drawn for kind in ("png", "svg", "pdf")}


def test_it_is_kept_while_it_is_true_and_made_again_when_not(toy_report: Path, copied: Run) -> None:
    made = report(copied.path)
    assert not made.kept
    first = files(made.index.parent)
    # The same run gives the same bytes, wherever it lies; only the folder's name is in them.
    assert {n: x for n, x in first.items() if n != "report.json"} == {
        n: x for n, x in files(toy_report).items() if n != "report.json"
    }
    assert report(copied.path).kept
    shutil.rmtree(made.index.parent / "data")
    copied.manifest["stages"]["score"]["key"] = "another"
    write_json(copied.path / "manifest.json", copied.manifest)
    again = report(copied.path)
    assert not again.kept
    assert (again.index.parent / "data/core.js").is_file()
    assert not [p for p in copied.path.iterdir() if p.name.startswith(".report")]


def test_a_report_that_breaks_off_leaves_the_old_one(
    copied: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = files(report(copied.path).index.parent)
    monkeypatch.setattr(site, "_write_page", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        report(copied.path, max_size=10)
    assert files(copied.path / "report") == before
    assert not [p for p in copied.path.iterdir() if p.name.startswith(".report")]


def test_without_images_it_says_so_and_is_tried_again(copied: Run) -> None:
    config = copied.manifest["config"]
    held, config["data"] = config["data"], str(copied.path / "gone")
    write_json(copied.path / "manifest.json", copied.manifest)
    made = report(copied.path)
    assert "no pictures" in made.notes[0]
    core = received(made.index.parent / "data/core.js")
    assert core["pictures"] is None
    assert core["report_notes"] == list(made.notes)
    assert not (made.index.parent / "sprites").exists()
    assert core["map"]["x"] is not None
    config["data"] = held
    write_json(copied.path / "manifest.json", copied.manifest)
    assert not report(copied.path).notes


def test_a_scored_file_has_a_report_without_pictures_and_map(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "acts.npz", embeddings=rng.normal(size=(5, 12, 6)).astype(np.float32))
    run = score_file(tmp_path / "acts.npz", changes={"replicates": 20})
    made = report(run.path)
    assert made.notes == ("no pictures: the embeddings came from a file, without images",)
    core = received(made.index.parent / "data/core.js")
    assert core["map"] == {"how": "no map: a scored file keeps no embeddings", "x": None, "y": None}
    assert [c["key"] for c in core["components"]] == ["s"]
    assert "Q and D not available" in core["notes"][0]
    assert report(run.path).kept


def test_the_nulls_named_are_those_that_were_used(copied: Run) -> None:
    # As a run writes it whose S is compared with neighbourhoods and that had no unrelated texts.
    rows = copied.nulls.to_pylist()
    for row in rows:
        if row["component"] == "s":
            row |= {"null": "neighborhood", "replicates": 160}
        if row["component"] == "d":
            row["null"] = "text-shuffle"
    write_table(copied.path / "nulls.parquet", pa.Table.from_pylist(rows, copied.nulls.schema))
    score = copied.manifest["config"]["score"]
    score |= {"s_null": "neighborhood", "d_null": "unrelated-text"}
    write_json(copied.path / "manifest.json", copied.manifest)
    core = received(report(copied.path).index.parent / "data/core.js")
    s, q, d = core["components"]
    assert [(c["null"], c["draws"]) for c in (s, q, d)] == [
        ("neighborhood", 160), ("permutation", 40), ("text-shuffle", 40),
    ]  # fmt: skip
    assert d["chance"].startswith("texts whose coordinates were shuffled between the concepts")
    assert "no meaning" in d["chance"]
    told = dict(core["facts"])["Nulls"]
    assert "S neighborhood (160 draws), Q permutation (40 draws)" in told
    assert "D text-shuffle (40 draws) instead of unrelated-text" in told


def test_older_runs_without_nulls_fall_back_and_say_so(copied: Run) -> None:
    (copied.path / "nulls.parquet").unlink()
    made = report(copied.path)
    core = received(made.index.parent / "data/core.js")
    assert core["null_quantiles"] is False
    assert [c["draws"] for c in core["components"]] == [40] * 3
    assert [x for x in core["notes"] if "named are those that were asked for" in x]
    assert received(made.index.parent / "data/channels-0.js")["rows"][0]["nulls"] is None


def test_names_that_are_no_text_are_escaped(copied: Run, tmp_path: Path) -> None:
    name = os.fsdecode(b"data-\xff")
    try:
        (tmp_path / name).symlink_to(copied.manifest["config"]["data"])
    except OSError:
        pytest.skip("the file system takes text only")
    copied.manifest["config"]["data"] = str(tmp_path / name)
    copied.manifest["model"]["name"] = name
    write_json(copied.path / "manifest.json", copied.manifest)
    made = report(copied.path)
    assert made.notes == ()
    core = received(made.index.parent / "data/core.js")
    assert core["title"] == name
    assert name in dict(core["facts"])["Images"]
    assert "<title>data-\\udcff" in made.index.read_text(encoding="utf-8")


def test_layers_without_a_single_patch_are_shown(tmp_path: Path) -> None:
    options = RUN_OPTIONS | {"replicates": 2, "out": str(tmp_path / "run"), "channels": ["0:1"]}
    options |= {"data": str(write_images(tmp_path / "images", 12))}
    run = run_pipeline(
        RunConfig.from_options(**options | {"model": "tests.toy:poisoned", "layers": ["0"]})
    )
    assert set(run.channels["n_patches"].to_pylist()) == {0}
    folder = report(run.path).index.parent
    core = received(folder / "data/core.js")
    assert core["components"] == []
    assert "Nulls" not in dict(core["facts"])
    found = search(run.path, "red")
    assert len(found.table) == 0
    assert search(run.path, "red").table.schema == found.table.schema


def test_swaps_of_older_scores_are_left_out(copied: Run) -> None:
    (copied.path / "causal_summary.parquet").write_bytes(b"of another score")
    assert received(report(copied.path).index.parent / "data/core.js")["swaps"] == []


def test_foreign_folders_and_bad_sizes_are_refused(toy_run: Run, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.txt").write_text("all of it")
    with pytest.raises(RunFolderError, match="something else than a report"):
        report(toy_run.path, tmp_path / "mine")
    with pytest.raises(RunFolderError, match="is a file"):
        report(toy_run.path, tmp_path / "mine/thesis.txt")
    with pytest.raises(InputError, match="max-size is too small"):
        report(toy_run.path, max_size=0)
    with pytest.raises(RunFolderError, match="not a run folder"):
        report(tmp_path / "nothing")
    assert (tmp_path / "mine/thesis.txt").read_text() == "all of it"


def test_vectors_are_the_mean_of_each_channels_patches(toy_run: Run) -> None:
    layer = load_stored(toy_run.path).layers["conv2"]
    found = channel_means(layer)
    for row, (patches, mask) in enumerate(zip(layer.embeddings, layer.mask, strict=True)):
        if not mask.any():
            assert np.isnan(found[row]).all()  # the dead channel
            continue
        wanted = np.mean([x.numpy().astype(float) for x in patches[mask]], axis=0)
        np.testing.assert_allclose(found[row], wanted / np.linalg.norm(wanted), atol=1e-6)
    assert np.isnan(found).any()


def test_another_version_or_other_words_make_another_report(
    toy_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = site.report_key(toy_run, 150)
    with monkeypatch.context() as patched:
        patched.setattr(site, "__version__", "another")
        assert site.report_key(toy_run, 150) != before
    page = shutil.copytree(Path(site.__file__).parent, tmp_path / "page")
    monkeypatch.setattr(site, "_PAGE", page)
    assert site.report_key(toy_run, 150) == before
    (page / "words.py").write_text("# other words")
    assert site.report_key(toy_run, 150) != before


def test_the_run_is_opened_by_its_path(toy_run: Run, toy_report: Path) -> None:
    assert report(str(toy_run.path)).kept
    assert open_run(toy_run.path).channels.equals(toy_run.channels)
