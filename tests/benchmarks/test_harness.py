"""Clocks take turns, peaks are a process's own, results carry the machine's facts."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest

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
