"""A run killed at random moments ends with the files of an undisturbed one."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks.kills import JOURNAL, Told, Trial, differing, job, slay
from psi_engine import cli, embedding, mining_pass, pipeline
from tests import toy


def test_every_kind_of_difference_is_found(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name / "inner").mkdir(parents=True)
        (tmp_path / name / "inner" / "same").write_bytes(b"1")
        (tmp_path / name / "manifest.json").write_text(name)
    assert differing(tmp_path / "a", tmp_path / "b") == []
    (tmp_path / "a" / "other").write_bytes(b"1")
    (tmp_path / "b" / "other").write_bytes(b"2")
    (tmp_path / "b" / "inner" / "more").write_bytes(b"")
    assert differing(tmp_path / "a", tmp_path / "b") == ["inner/more", "other"]


def test_what_a_kill_cost_is_told(tmp_path: Path) -> None:
    (tmp_path / "0").write_text("begin 0\ntodo 100\nmined 16\nmined 80\n")
    before = Told.of(tmp_path)
    (tmp_path / "0").write_text("begin 0\ntodo 36\nmined 16\nmined 36\ncrops 0\ncrops 96\n")
    now = Told.of(tmp_path)
    assert now.lost_since(before) == (16, 0)  # 80 of 100 were mined, and 36 were left
    (tmp_path / "0").write_text("begin 0\n")
    later = now.after(before)
    assert Told.of(tmp_path).after(later).crops == 96  # a job that got nowhere tells nothing
    (tmp_path / "0").write_text("begin 0\ncrops 64\n")
    assert Told.of(tmp_path).lost_since(later) == (0, 32)


def test_images_that_are_refined_are_not_told_as_mined(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[str, int, int]] = []

    def work(*_: Any, progress: Callable[[str, int, int], None], **__: Any) -> None:
        for step in (("mining", 16, 40), ("refining", 50, 50), ("embedding", 8, 8)):
            progress(*step)

    def program() -> None:
        mining_pass.mine(indices=range(40), progress=lambda *step: seen.append(step))
        pipeline.embed_boxes(tmp_path)

    monkeypatch.setattr(mining_pass, "mine", work)
    monkeypatch.setattr(pipeline, "embed_boxes", work)
    # what the job sets is put back
    monkeypatch.setattr(pipeline, "run_folder", pipeline.run_folder)
    monkeypatch.setattr(mining_pass, "CHECKPOINT_IMAGES", mining_pass.CHECKPOINT_IMAGES)
    monkeypatch.setattr(embedding, "BLOCK", embedding.BLOCK)
    monkeypatch.setattr(sys, "argv", sys.argv)
    monkeypatch.setattr(cli, "main", program)
    monkeypatch.setenv(JOURNAL, str(tmp_path))
    monkeypatch.delenv("RANK", raising=False)
    job(64, 32, 0, [])
    assert (tmp_path / "0").read_text().splitlines() == [
        "todo 40", "mined 16", "crops 0", "crops 8"
    ]  # fmt: skip
    assert seen == [("mining", 16, 40), ("refining", 50, 50), ("embedding", 8, 8)]


def test_descendants_die_with_a_run() -> None:
    child = "import time; time.sleep(60)"
    parent = f"import subprocess as s, sys; p = s.Popen([sys.executable, '-c', '{child}'], "
    parent += "start_new_session=True); print(p.pid, flush=True); p.wait()"
    process = subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE, text=True)
    with process.stdout:
        grandchild = Path(f"/proc/{int(process.stdout.readline())}")
    assert grandchild.exists()
    slay(process)
    status = grandchild / "status"
    assert not status.exists() or "Z (zombie)" in status.read_text()


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("ranks", [1, 2])
def test_a_killed_run_gives_the_same_bits(tmp_path: Path, ranks: int) -> None:
    images = toy.write_images(tmp_path / "images", 96)
    options = ["--model", "tests.toy:model", "--layers", "conv2", "--encoder", "tests.toy:encoder"]
    options += ["--patch", "16", "--top-k", "12", "--replicates", "40", "--device", "cpu"]
    options += ["--workers", "1", "--data", str(images)]
    met: set[str] = set()
    for seed in range(5):  # on a busy machine most of the time goes into what is no stage
        (folder := tmp_path / str(seed)).mkdir()
        trial = Trial(folder, options, ranks, interval=16, block=256, pause=0.1)
        trial.run(kills=4, seed=seed)
        assert trial.different == []
        assert trial.excess == []
        met |= trial.met.keys()
        if {"mine", "embed"} <= met:
            return
    pytest.fail(f"no kill while mining, or none while embedding: {met}")
