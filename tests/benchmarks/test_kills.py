"""A run killed at random moments ends with the files of an undisturbed one."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.kills import differing, kill
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


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2])
def test_a_killed_run_gives_the_same_bits(tmp_path: Path, ranks: int) -> None:
    images = toy.write_images(tmp_path / "images", 60)
    options = ["--model", "tests.toy:model", "--layers", "conv2", "--encoder", "tests.toy:encoder"]
    options += ["--patch", "16", "--top-k", "12", "--replicates", "40", "--device", "cpu"]
    different = kill(tmp_path, [*options, "--data", str(images)], kills=4, ranks=ranks, seed=0)
    assert different == []
