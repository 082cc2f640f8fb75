"""Clocks take turns, peaks are a process's own, results carry the machine's facts."""

import csv
import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from benchmarks import harness
from benchmarks.harness import (
    Results,
    Spread,
    Work,
    in_fresh_process,
    interleave,
    peak_memory,
    spread,
)

MEGABYTE = 1 << 20


def test_works_take_turns_after_one_warm_up():
    calls = []
    works = {
        "a": Work(lambda: calls.append("a")),
        "b": Work(lambda: calls.append("b") or 7, lambda: calls.append("warm b")),
    }
    taken = interleave(works, 3)
    assert calls == ["a", "warm b", "a", "b", "b", "a", "a", "b"]
    assert [r.value for r in taken["b"]] == [7, 7, 7]
    assert all(r.seconds >= 0 for rounds in taken.values() for r in rounds)


def test_spread_is_the_percentiles():
    assert spread([5.0, 1.0, 2.0, 3.0, 4.0, 6.0]) == pytest.approx((2.0, 3.5, 5.0))


def fill(megabytes):
    return float(np.ones(megabytes * MEGABYTE // 8).sum())


def test_the_peak_is_that_of_the_process_alone():
    here = np.ones(300 * MEGABYTE // 8)
    small = in_fresh_process(fill, 1)[1]
    total, large = in_fresh_process(fill, 200)
    assert total == 200 * MEGABYTE // 8
    assert 190 * MEGABYTE < large - small < 260 * MEGABYTE
    assert peak_memory() >= here.nbytes


def test_results_are_written_with_their_conditions(tmp_path: Path):
    results = Results("speed", {"rounds": 3, "out": tmp_path, "file": Path("/a/b.npz")})
    results.add(route="one", seconds=Spread(1.0, 2.0, 3.0))
    results.add(route="two", share=0.5)
    results.write(tmp_path)
    written = json.loads((tmp_path / "speed.json").read_text())
    facts = written["facts"]
    assert facts["settings"] == {"rounds": 3, "file": "b.npz"}
    assert "commit" in facts  # None outside a checkout
    for name in ("cpu", "cores", "threads", "packages", "python", "wall_seconds"):
        assert facts[name] is not None
    assert written["rows"][0] == {
        "route": "one",
        "seconds_p20": 1.0,
        "seconds_p50": 2.0,
        "seconds_p80": 3.0,
    }
    with (tmp_path / "speed.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert rows[0]["seconds_p50"] == "2"
    assert rows[1]["share"] == "0.5"
    assert rows[1]["seconds_p50"] == ""


def test_what_is_not_finite_is_null(tmp_path: Path):
    results = Results("speed", {"bound": float("inf")})
    results.add(share=float("nan"), seconds=Spread(1.0, float("nan"), float("-inf")), parts=[1.5])
    results.facts["worlds"] = {"a": {"score": float("nan")}}
    results.write(tmp_path)

    def refuse(constant):
        raise AssertionError(constant)

    text = (tmp_path / "speed.json").read_text()
    written = json.loads(text, parse_constant=refuse)
    (row,) = written["rows"]
    assert row == {
        "share": None, "seconds_p20": 1.0, "seconds_p50": None, "seconds_p80": None,
        "parts": [1.5],
    }  # fmt: skip
    assert written["facts"]["worlds"] == {"a": {"score": None}}
    assert written["facts"]["settings"] == {"bound": None}


def test_only_what_was_written_at_the_end_is_finished(tmp_path: Path):
    def finished():
        return json.loads((tmp_path / "speed.json").read_text())["facts"]["finished"]

    results = Results("speed", {}, keep=tmp_path)
    results.add(route="one")
    assert finished() is False
    results.write(tmp_path)
    assert finished() is True


def test_the_system_is_named_without_its_release(monkeypatch):
    monkeypatch.setattr(harness.platform, "release", lambda: "9.9-strange")
    monkeypatch.setattr(harness.platform, "system", lambda: "Linux")
    monkeypatch.setattr(harness.platform, "machine", lambda: "x86_64")
    assert harness.machine()["system"] == "Linux x86_64"


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ("psi_engine/a.py", True),
        ("kernels/a.cu", True),
        ("benchmarks/a.py", True),
        ("benchmarks/results/a.json", False),
        ("docs/a.md", False),
    ],
)
def test_changes_are_those_of_what_is_measured_and_what_measures(
    tmp_path: Path, monkeypatch, changed, told
):
    monkeypatch.setattr(harness, "_HERE", tmp_path / "benchmarks")
    subprocess.run(["git", "init", "--quiet", str(tmp_path)], check=True)
    assert harness.machine()["changed_since"] is False
    (tmp_path / changed).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / changed).write_text("x")
    assert harness.machine()["changed_since"] is told
