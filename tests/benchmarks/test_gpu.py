"""The check for GPUs, on a CPU and small: every part runs, and a wrong kernel stops it."""

import csv
import json

import pytest
import torch

from benchmarks import gpu, operations, profiles

SMALL = ["--device", "cpu", "--channels", "4", "--images", "30", "--rounds", "1", "--workers", "0"]
SMALL += ["--replicates", "3"]
OPERATIONS = (
    "silhouette",
    "separability",
    "Q, M = 3",
    "S, M = 3",
    "S of a pool, M = 3",
    "D, M = 3",
)


def test_operations_are_compared_and_written(tmp_path):
    results = gpu.main([*SMALL, "--parts", "ops", "mining", "--out", str(tmp_path)])
    assert not any(row.get("failed") for row in results.rows)
    with (tmp_path / "gpu.csv").open() as file:
        rows = list(csv.DictReader(file))
    timed = {(row["what"], row["backend"]) for row in rows if row["seconds_p50"]}
    for name in OPERATIONS:
        assert {(name, "numba"), (name, "torch")} <= timed
    assert {row["what"] for row in rows} >= {"top-K, all images", "mining all images"}
    assert all(float(row["floor"]) > 0 for row in rows if row["floor"])
    ceilings = {row["name"]: float(row["per_second"]) for row in rows[:4]}
    (row,) = [x for x in rows if (x["what"], x["backend"]) == ("D, M = 3", "torch")]
    seconds, made = float(row["seconds_p50"]), 2 * 4 * 3 * 5 * 5 * 300
    assert float(row["flop_per_second"]) == pytest.approx(made / seconds, rel=1e-4)
    share = float(row["flop_per_second"]) / ceilings["float64 product"]
    assert float(row["product_share"]) == pytest.approx(share, rel=1e-4)
    assert row["near"] == str(seconds <= 2 * float(row["floor"]))


def test_a_floor_is_the_longer_of_its_two_times():
    ceilings = operations.Ceilings.__new__(operations.Ceilings)
    ceilings.rate = {"copy": 10.0, "float64 product": 100.0}
    assert ceilings.floor(20.0, 100.0) == 2.0
    assert ceilings.floor(20.0, 500.0) == 5.0
    assert ceilings.floor(20.0, 0.0) == 2.0


def test_small_sizes_have_no_goals_and_the_end_is_marked(tmp_path):
    gpu.main([*SMALL[:-1], "1000", "--parts", "mining", "--out", str(tmp_path)])
    written = json.loads((tmp_path / "gpu.json").read_text())
    assert written["facts"]["finished"] is True
    (goal,) = {x["goal"] for x in written["rows"] if x["what"] == "mining all images"}
    assert goal is None


def test_an_operation_that_breaks_becomes_a_row_and_the_rest_goes_on(monkeypatch):
    def broken(*sets, **options):
        raise ValueError("no such kernel")

    monkeypatch.setattr(operations, "pooled_separability", broken)
    results = gpu.main([*SMALL, "--parts", "ops"])
    assert [row["what"] for row in results.rows if row.get("failed")] == ["S of a pool, M = 3"]
    assert results.rows[-1]["what"] == "D, M = 3"


def test_profiles_name_what_took_most(tmp_path):
    results = gpu.main([*SMALL, "--parts", "profiles", "--out", str(tmp_path)])
    assert not any(row.get("failed") for row in results.rows)
    for of in ("psi.score, M = 3", "mining"):
        rows = [row for row in results.rows if row["of"] == of]
        assert 1 < len(rows) <= profiles.TOP
        shares = [row["share"] for row in rows]
        assert shares == sorted(shares, reverse=True)
        assert 0.5 < sum(shares) <= 1.0 + 1e-9
        assert of in (tmp_path / "gpu-profile.txt").read_text()


@pytest.mark.slow
def test_a_run_on_generated_images():
    results = gpu.main([*SMALL, "--parts", "run"])
    (row,) = [row for row in results.rows if row["what"] == "run fp32"]
    assert row["mine"] > 0
    assert row["score"] > 0


@pytest.mark.parametrize("wrong", [1e-4, float("nan")])
def test_a_kernel_that_differs_becomes_a_row_and_the_rest_goes_on(tmp_path, monkeypatch, wrong):
    honest = operations.silhouette

    def other(grams, labels, backend):
        return honest(grams, labels, backend=backend) + (wrong if backend == "numba" else 0.0)

    monkeypatch.setattr(operations, "silhouette", other)
    results = gpu.main([*SMALL, "--parts", "ops", "--out", str(tmp_path)])
    assert [row["what"] for row in results.rows if row.get("failed")] == ["silhouette"]
    assert results.rows[-1]["what"] == "D, M = 3"
    assert len((tmp_path / "gpu.csv").read_text().splitlines()) == len(results.rows) + 1


def test_a_part_that_breaks_becomes_a_row(tmp_path, monkeypatch):
    def broken(results, options):
        results.add(what="before")
        raise ValueError("out of luck")

    monkeypatch.setitem(gpu.STEPS, "score", broken)
    results = gpu.main([*SMALL, "--parts", "score", "--out", str(tmp_path)])
    assert results.rows[-1] == {"what": "score", "failed": "ValueError: out of luck"}
    assert "before" in (tmp_path / "gpu.csv").read_text()


def test_what_is_missing_is_told_before_anything(monkeypatch):
    monkeypatch.setattr(gpu, "NEEDED", ("numpy", "no_such_package"))
    with pytest.raises(SystemExit, match="not installed: no_such_package"):
        gpu.main(SMALL)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU to measure")
def test_without_a_gpu_nothing_is_measured():
    with pytest.raises(SystemExit, match="no CUDA device"):
        gpu.main([])


def test_files_with_tests_for_a_gpu_are_run_and_what_fails_is_told(tmp_path, monkeypatch):
    project = tmp_path / "project"
    (project / "tests").mkdir(parents=True)
    marked = "import pytest\n@pytest.mark.gpu\ndef test_{0}(): assert {1}\n"
    for name, text in {
        "good": marked.format("good", True),
        "bad": marked.format("bad", False) + "def test_not_for_a_gpu(): assert False\n",
        "other": "def test_other():\n    assert '@pytest.mark.gpu' == 0\n",
    }.items():
        (project / "tests" / f"test_{name}.py").write_text(text)
    (project / "pytest.ini").write_text("[pytest]\nmarkers = gpu\n")
    monkeypatch.setattr(gpu, "PROJECT", project)
    results = gpu.main([*SMALL, "--parts", "tests", "--out", str(tmp_path)])
    bad, good = sorted(results.rows, key=lambda row: row["file"])
    assert (bad["file"], bad["exit"]) == ("tests/test_bad.py", 1)
    assert bad["failed"].startswith("FAILED tests/test_bad.py::test_bad")
    assert "1 failed, 1 deselected" in bad["result"]
    assert (good["file"], good["exit"], good["failed"]) == ("tests/test_good.py", 0, None)
    log = (tmp_path / "gpu-tests.log").read_text()
    assert "test_bad FAILED" in log
    assert "test_good PASSED" in log
    monkeypatch.setattr(gpu, "TEST_SECONDS", 0.01)
    results = gpu.main([*SMALL, "--parts", "tests"])
    assert [row["failed"] for row in results.rows] == [
        "ended with a stop after 0.01 s of all tests"
    ] * 2
