"""The whole run on a toy world: what is written, what resumes, what re-runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import torch

import psi_engine as psi
from psi_engine import mining_pass, pipeline
from psi_engine.errors import CorruptDataError, RunFolderError
from psi_engine.report.tables import summarise
from psi_engine.tables import SCORED
from tests import toy


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy.write_images(tmp_path_factory.mktemp("images"), 48)


def start(images: Path, out: Path, **changes: Any) -> psi.Run:
    options = {**toy.RUN_OPTIONS, "data": str(images), "out": str(out), **changes}
    return psi.run(psi.RunConfig.from_options(**options))


@pytest.fixture(scope="module")
def finished(images: Path, tmp_path_factory: pytest.TempPathFactory) -> psi.Run:
    return start(images, tmp_path_factory.mktemp("run"))


def bits(run: psi.Run) -> dict[str, bytes]:
    names = (*(f"{name}.parquet" for name in SCORED), "embeddings/embeddings.npy")
    return {name: (run.path / name).read_bytes() for name in names}


def test_every_channel_has_a_row_and_every_site_a_box(finished: psi.Run) -> None:
    channels = finished.channels
    assert channels["layer"].to_pylist() == ["conv2"] * 8 + ["head"] * 5
    assert channels["channel"].to_pylist() == [*range(8), *range(5)]
    sites = finished.sites
    top = sites.filter(pc.equal(sites["kind"].cast("string"), "top"))
    assert len(top) == 13 * 12
    boxes = np.stack([sites[name].to_numpy() for name in ("x0", "y0", "x1", "y1")], 1)
    assert boxes.min() >= 0
    assert boxes.max() <= 32
    conv = np.array(sites["layer"].to_pylist()) == "conv2"
    assert set((boxes[conv, 2:] - boxes[conv, :2]).ravel().tolist()) == {16}
    assert set((boxes[~conv, 2:] - boxes[~conv, :2]).ravel().tolist()) == {32}
    clusters = finished.clusters
    assert (
        pc.sum(clusters["size"]).as_py()
        == pc.sum(pc.cast(pc.is_valid(top["cluster"]), "int64")).as_py()
    )


def test_scores_are_those_of_the_library_on_the_stored_embeddings(finished: psi.Run) -> None:
    """What the tables say of S is what scikit-learn says of the stored crops and clusters."""
    from sklearn.metrics import normalized_mutual_info_score, silhouette_score

    rows = finished.path / "embeddings"
    embeddings = np.load(rows / "embeddings.npy")
    boxes = pq.read_table(rows / "boxes.parquet").to_pylist()
    index = {tuple(box.values()): row for row, box in enumerate(boxes)}
    sites = finished.sites.to_pylist()
    for channel in finished.channels.filter(
        pc.equal(finished.channels["status"], "ok")
    ).to_pylist():
        mine = [
            site for site in sites
            if site["kind"] == "top"
            and (site["layer"], site["channel"]) == (channel["layer"], channel["channel"])
        ]  # fmt: skip
        keys = ("image_id", "x0", "y0", "x1", "y1")
        z = embeddings[[index[tuple(site[key] for key in keys)] for site in mine]]
        clusters = [site["cluster"] for site in mine]
        expected = max(0.0, silhouette_score(z.astype(np.float64), clusters, metric="cosine"))
        assert channel["s"] == pytest.approx(expected, abs=1e-5)
        labels = [site["label"] for site in mine]
        assert channel["q"] == pytest.approx(
            normalized_mutual_info_score(labels, clusters), abs=1e-6
        )
        assert len(set(clusters)) == channel["n_clusters"]


def test_dead_channel_keeps_its_row_with_a_reason(finished: psi.Run) -> None:
    row = finished.channels.to_pylist()[7]
    assert row["status"] == "failed"
    assert row["verdict"] == "not scorable"
    assert row["reason"] == "dead channel: 0 at every site of 48 images"
    assert row["psi"] is None
    assert row["s"] is None


def test_all_negative_channel_is_mined_and_scored(finished: psi.Run) -> None:
    row = finished.channels.to_pylist()[0]
    assert row["activation_max"] < 0
    assert row["status"] == "ok"


def test_manifest_says_what_was_run_and_where_time_went(finished: psi.Run) -> None:
    manifest = finished.manifest
    assert manifest["schema_version"] == 1
    assert manifest["config"]["mine"]["top_k"] == 12
    assert manifest["device"] == "cpu"
    assert set(manifest["fingerprints"]) == {"weights", "data", "encoder", "vocabulary"}
    assert manifest["versions"]["torch"] == torch.__version__
    for stage in ("mine", "patches", "embed", "score"):
        assert manifest["stages"][stage]["status"] == "done"
        assert manifest["stages"][stage]["seconds"] >= 0
    assert manifest["stages"]["mine"]["images"] == 48


def test_a_clean_folder_and_another_batch_size_give_the_same_bits(
    finished: psi.Run, images: Path, tmp_path: Path
) -> None:
    assert bits(start(images, tmp_path / "a", batch_size=5)) == bits(finished)


def test_channel_subset_scores_as_in_the_whole_layer(
    finished: psi.Run, images: Path, tmp_path: Path
) -> None:
    """Pools and nulls belong to the layer, randomness to the channel: a subset changes neither."""
    part = start(images, tmp_path / "a", channels=["conv2:2-4"]).channels
    keep = ["channel", "s", "s_null_mean", "s_z", "s_p", "q", "q_z", "d", "d_z", "psi"]
    whole = finished.channels.filter(pc.equal(finished.channels["layer"], "conv2"))
    part = part.filter(pc.equal(part["layer"], "conv2"))
    assert part["channel"].to_pylist() == [2, 3, 4]
    assert part.select(keep).to_pylist() == whole.select(keep).to_pylist()[2:5]


def spy(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Record which stages work."""
    worked: list[str] = []
    for name in ("mine_images", "embed_boxes", "describe_clusters", "receptive_field"):
        original = getattr(pipeline, name)

        def noted(*args: Any, _name: str = name, _original: Any = original, **kwargs: Any) -> Any:
            worked.append(_name)
            return _original(*args, **kwargs)

        monkeypatch.setattr(pipeline, name, noted)
    return worked


@pytest.mark.parametrize(
    ("change", "stages"),
    [
        ({}, set()),
        ({"batch_size": 7}, set()),
        ({"replicates": 41}, {"describe_clusters"}),
        ({"patch": 14}, {"receptive_field", "embed_boxes", "describe_clusters"}),
        ({"top_k": 11}, {"mine_images", "receptive_field", "embed_boxes", "describe_clusters"}),
        (
            {"layers": ["head"]},
            {"mine_images", "receptive_field", "embed_boxes", "describe_clusters"},
        ),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_a_changed_setting_re_runs_what_depends_on_it(
    images: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    change: dict[str, Any],
    stages: set[str],
) -> None:
    start(images, tmp_path / "run")
    worked = spy(monkeypatch)
    again = start(images, tmp_path / "run", **change)
    assert set(worked) == stages
    monkeypatch.undo()
    assert bits(again) == bits(start(images, tmp_path / "clean", **change))


@pytest.mark.parametrize("stage", ["mine_images", "embed_boxes", "describe_clusters"])
def test_a_stopped_run_continues_after_its_last_finished_stage(
    finished: psi.Run, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    def stop(*args: Any, **kwargs: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(pipeline, stage, stop)
    with pytest.raises(KeyboardInterrupt):
        start(images, tmp_path)
    monkeypatch.undo()
    held = json.loads((tmp_path / "manifest.json").read_text())["stages"]
    finished_before = {name for name, entry in held.items() if entry["status"] == "done"}
    worked = spy(monkeypatch)
    again = start(images, tmp_path)
    assert ("mine_images" in worked) == ("mine" not in finished_before)
    assert ("embed_boxes" in worked) == ("embed" not in finished_before)
    assert bits(again) == bits(finished)


def test_mining_and_embedding_continue_from_their_last_saved_state(
    finished: psi.Run, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from psi_engine import embedding

    monkeypatch.setattr(mining_pass, "CHECKPOINT_IMAGES", 16)
    monkeypatch.setattr(embedding, "BLOCK", 32)
    uninterrupted = bits(start(images, tmp_path / "whole"))
    reached: list[tuple[str, int]] = []

    def stop_after(what: str, limit: int) -> Any:
        def progress(said: str, done: int, total: int) -> None:
            reached.append((said, done))
            if said == what and done >= limit:
                raise KeyboardInterrupt

        return progress

    options = {**toy.RUN_OPTIONS, "data": str(images), "out": str(tmp_path / "run")}
    config = psi.RunConfig.from_options(**options)
    for what, limit in (("mining", 33), ("embedding", 100)):
        with pytest.raises(KeyboardInterrupt):
            psi.run(config, progress=stop_after(what, limit))
    assert [*(tmp_path / "run" / embedding.PARTS).rglob("*.f32")]
    reached.clear()
    run = psi.run(config, progress=lambda what, done, total: reached.append((what, done)))
    first = next(done for what, done in reached if what == "embedding")
    assert first > 100
    assert "mining" not in {what for what, _ in reached}
    assert bits(run) == uninterrupted


def test_rows_of_another_interrupted_encoder_are_never_taken_for_done(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A, killed while embedding; B, killed before its first block; then A again."""
    from psi_engine import embedding

    monkeypatch.setattr(embedding, "BLOCK", 32)
    clean = bits(start(images, tmp_path / "clean"))

    def stop(*args: Any) -> None:
        raise KeyboardInterrupt

    options = {**toy.RUN_OPTIONS, "data": str(images), "out": str(tmp_path / "run")}
    with pytest.raises(KeyboardInterrupt):
        psi.run(
            psi.RunConfig.from_options(**options),
            progress=lambda what, done, total: stop() if what == "embedding" else None,
        )
    monkeypatch.setattr(embedding, "_blocks", stop)
    monkeypatch.setattr(toy.PixelEncoder, "fingerprint", "toy-2")
    with pytest.raises(KeyboardInterrupt):
        psi.run(psi.RunConfig.from_options(**options))
    monkeypatch.undo()
    monkeypatch.setattr(embedding, "BLOCK", 32)
    assert bits(start(images, tmp_path / "run")) == clean


def test_image_that_breaks_after_mining_stops_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = toy.write_images(tmp_path / "images", 30)
    last = sorted(folder.rglob("*.png"))[-1]
    original = pipeline.embed_boxes

    def break_then_embed(*args: Any, **kwargs: Any) -> Path:
        last.write_bytes(b"broken")
        return original(*args, **kwargs)

    monkeypatch.setattr(pipeline, "embed_boxes", break_then_embed)
    with pytest.raises(CorruptDataError, match="no longer is; got red/|no longer is; got .*png"):
        start(folder, tmp_path / "run", batch_size=1)


def test_tables_of_an_old_setting_are_not_shown_after_a_kill(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start(images, tmp_path)

    def stop(*args: Any, **kwargs: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(pipeline, "embed_boxes", stop)
    with pytest.raises(KeyboardInterrupt):
        start(images, tmp_path, patch=14)
    with pytest.raises(RunFolderError, match=r"not there yet; got unfinished: embed"):
        _ = psi.open_run(tmp_path).channels


def test_an_unchanged_run_embeds_no_text_again(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start(images, tmp_path)

    def refuse(self: Any, texts: list[str]) -> None:
        raise AssertionError("texts embedded again")

    monkeypatch.setattr(pipeline, "embed_texts", refuse)
    start(images, tmp_path)


def test_corrupt_images_at_the_end_do_not_stop_a_resumed_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The share of unreadable images is one of all images, not of those that are left."""
    folder = toy.write_images(tmp_path / "images", 60)
    for file in sorted(folder.rglob("*.png"))[-3:]:
        file.write_bytes(b"broken")
    monkeypatch.setattr(mining_pass, "CHECKPOINT_IMAGES", 16)
    options = {
        **toy.RUN_OPTIONS,
        "data": str(folder),
        "out": str(tmp_path / "run"),
        "batch_size": 4,
    }

    def stop_late(what: str, done: int, total: int) -> None:
        if done >= 48:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        psi.run(psi.RunConfig.from_options(**options), progress=stop_late)
    assert [*(tmp_path / "run" / mining_pass.PARTIAL).glob("*.safetensors")]
    run = psi.run(psi.RunConfig.from_options(**options))
    assert len(run.manifest["stages"]["mine"]["skipped"]) == 3


def test_sites_all_is_said_to_raise_s(images: Path, tmp_path: Path) -> None:
    run = start(images, tmp_path, sites="all", layers=["conv2"])
    assert any(note.startswith("sites = all") for note in summarise(run)["notes"])


def test_other_data_is_refused_in_the_same_folder(finished: psi.Run, tmp_path: Path) -> None:
    before = bits(finished)
    others = toy.write_images(tmp_path / "others", 30)
    with pytest.raises(RunFolderError, match="holds another run.*got data"):
        start(others, finished.path)
    assert bits(finished) == before


def test_other_labels_are_scored_anew(images: Path, tmp_path: Path) -> None:
    """Even where the fingerprint of the data does not see them."""
    options = {**toy.RUN_OPTIONS, "data": str(images), "out": str(tmp_path)}
    config = psi.RunConfig.from_options(**options)
    inputs = pipeline.check(config)
    before = pipeline._keys(config, inputs, "mined", "words")
    labels = inputs.source.labels
    assert labels is not None
    labels[-1] = 1 - labels[-1].clamp(max=1)
    after = pipeline._keys(config, inputs, "mined", "words")
    assert {stage for stage in before if before[stage] != after[stage]} == {"score"}


def test_no_labels_and_no_text_are_said_everywhere(tmp_path: Path) -> None:
    flat = toy.write_images(tmp_path / "flat", 30, labelled=False)
    run = start(flat, tmp_path / "run", encoder="tests.toy:textless", layers=["conv2"])
    row = run.channels.to_pylist()[0]
    assert row["q"] is None
    assert row["q_hat"] is None
    assert row["d"] is None
    assert row["psi"] == pytest.approx(row["s_hat"])
    said = " ".join(run.manifest["stages"]["score"]["notes"]["conv2"])
    assert "label" in said
    assert "text" in said
    summary = summarise(run)
    assert summary["layers"][0]["components"] == ["s"]
    assert any("label" in note for note in summary["notes"])


def test_fewer_images_than_k_are_scored_short_and_said(tmp_path: Path) -> None:
    few = toy.write_images(tmp_path / "few", 9)
    run = start(few, tmp_path / "run", layers=["conv2"])
    rows = run.channels.to_pylist()
    assert {row["status"] for row in rows[:7]} == {"short"}
    assert {row["n_patches"] for row in rows[:7]} == {9}
    assert rows[0]["reason"] == "scored on 9 of 12 patches"
    assert any("at most 9 of 12 patches" in note for note in summarise(run)["notes"])


def test_channel_with_few_sites_is_short_and_with_none_fails(tmp_path: Path) -> None:
    """Channel 1 of the poisoned net is NaN but for the few reddest images."""
    toy.write_images(tmp_path / "images", 30)
    red = toy.draw(0, 0)
    for number in range(6):
        red.paste((255, 0, 0), (0, 0, 32, 32))
        red.paste((255, 99, 0), (number, number, number + 9, number + 9))
        red.save(tmp_path / "images" / "red" / f"z{number}.png")
    run = start(tmp_path / "images", tmp_path / "run", model="tests.toy:poisoned", layers=["0"])
    rows = run.channels.to_pylist()
    assert [row["status"] for row in rows] == ["ok", "short", "ok"]
    assert rows[1]["n_patches"] == 6
    assert rows[1]["nonfinite"] == 30 * 32 * 32
    fewer = toy.write_images(tmp_path / "images2", 30)
    red.save(fewer / "red" / "z.png")
    run = start(fewer, tmp_path / "run2", model="tests.toy:poisoned", layers=["0"])
    row = run.channels.to_pylist()[1]
    assert (row["status"], row["verdict"]) == ("failed", "not scorable")
    assert row["reason"] == "1 different patches, at least 4 are needed"


def test_corrupt_images_are_skipped_and_listed(tmp_path: Path) -> None:
    folder = toy.write_images(tmp_path / "images", 48)
    broken = folder / "green" / "0004.png"
    broken.write_bytes(broken.read_bytes()[:200])
    run = start(folder, tmp_path / "run", layers=["head"])
    stage = run.manifest["stages"]["mine"]
    assert stage["images"] == 47
    assert [item["key"] for item in stage["skipped"]] == ["green/0004.png"]
    assert stage["skipped"][0]["reason"]
    assert stage["skipped"][0]["image_id"] not in run.sites["image_id"].to_pylist()
    assert any("1 unreadable images skipped (green/0004.png" in n for n in summarise(run)["notes"])
    assert summarise(run)["skipped"] == stage["skipped"]


def test_paper_preset_runs_and_differs_from_the_calibrated_one(
    finished: psi.Run, images: Path, tmp_path: Path
) -> None:
    options = {**toy.RUN_OPTIONS, "data": str(images), "out": str(tmp_path), "image_size": 32}
    for name in ("patch", "replicates", "pool"):
        options.pop(name)
    run = psi.run(psi.RunConfig.from_options(preset="paper", **options))
    config = run.manifest["config"]
    assert config["score"]["d_null"] == "unrelated-text"
    assert config["mine"]["sites"] == "all"
    fields = run.manifest["stages"]["patches"]["fields"]
    assert fields["conv2"]["size"] == [7, 7]  # two 3 × 3 convolutions of stride 2
    assert fields["conv2"]["source"] == "graph"
    rows = run.channels.to_pylist()
    assert rows[1]["s_p"] >= 1 / 21
    assert rows[1]["d"] is not None
    assert rows[1]["psi"] == pytest.approx(
        rows[1]["s_hat"] * rows[1]["q_hat"] * rows[1]["d_hat"], abs=1e-9
    )
    said = " ".join(summarise(run)["notes"])
    assert "1/21" in said
    assert rows[1]["s_null_mean"] != finished.channels.to_pylist()[1]["s_null_mean"]
