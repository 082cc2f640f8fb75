"""Agreement is checked before anything is timed, and each benchmark runs from end to end."""

import json

import numpy as np
import pytest

from benchmarks import replicates, scoring, solver, stability
from benchmarks.routes import Size

TINY = Size(6, patches=12, dim=16, replicates=3, concepts=6, pool=130)


def needs_faiss():
    pytest.importorskip("faiss", reason="faiss is in the bench group: uv run --group bench")


@pytest.fixture(scope="module")
def scorer():
    return scoring.Scorer(TINY)


@pytest.mark.parametrize("null", ["rotation-samples", "rotation-tangent"])
@pytest.mark.parametrize("route", ["scikit-learn", "faiss"])
def test_the_same_assignments_give_the_same_scores(route, null):
    if route == "faiss":
        needs_faiss()
    found = scoring.agreement(scoring.Scorer(TINY._replace(s_null=null)), [0, 3, 5], route)
    assert max(found.s, found.q, found.d) < 1e-6
    assert found.better >= 0.8
    assert abs(found.null_above) < 0.1


@pytest.mark.parametrize("part", "sqd")
def test_a_disagreement_stops_the_benchmark(scorer, monkeypatch, part):
    class Wrong(scoring.Scorer):
        def run(self, *arguments, **options):
            scores = super().run(*arguments, **options)
            getattr(scores, part)[0] += 1e-5
            return scores

    with pytest.raises(SystemExit, match="disagree"):
        scoring.agreement(Wrong(TINY), [0, 3], "scikit-learn")


def test_solver_reports_every_solver(tmp_path):
    needs_faiss()
    solver.main(["--problems", "2", "--dim", "8", "--out", str(tmp_path)])
    rows = json.loads((tmp_path / "solver.json").read_text())["rows"]
    assert len(rows) == len(solver.GENERATED) * 4 * 4
    assert all(row["worst_of_best"] <= 1 + 1e-12 for row in rows)


def test_share_counts_equal_objectives_as_good():
    ours, theirs = np.array([1.0, 1.0, 1.0]), np.array([1.0, 1.0 + 1e-7, 1.1])
    assert solver.share_at_least(ours, theirs) == pytest.approx(2 / 3)


def test_allowed_changes_of_z():
    z = np.array([0.0, -3.0, 10.0])
    expected = [0.5, 0.5, 5 * np.sqrt(2 * 51 / 1000)]
    np.testing.assert_allclose(stability.allowed(z, 1000), expected)


def test_stability_covers_every_case(monkeypatch, tmp_path):
    monkeypatch.setattr(stability, "POOL", 600)
    monkeypatch.setattr(stability, "CONCEPTS", 8)
    sizes = ["--own", "2", "--channels", "6", "--replicates", "60", "--dim", "16"]
    results = stability.main([*sizes, "--out", str(tmp_path)])
    cases = {(row["component"], row["null"]) for row in results.rows}
    assert cases == {(case.component, case.null) for case in stability.CASES}
    assert (tmp_path / "stability.csv").is_file()


@pytest.mark.slow
def test_scoring_runs(tmp_path):
    needs_faiss()
    sizes = ["--channels", "12", "--part", "8", "--scikit-learn", "2", "--faiss", "2"]
    options = ["--dim", "16", "--rounds", "1", "--nulls", "rotation-samples"]
    scoring.main([*sizes, *options, "--processes", "2", "--out", str(tmp_path)])
    rows = json.loads((tmp_path / "scoring.json").read_text())["rows"]
    whole = [row for row in rows if row["what"] == "SQD" and row["route"] != "psi-engine"]
    assert {row["route"] for row in whole} == {"scikit-learn", "faiss"}
    assert all(row["times_p50"] > 1 for row in whole)


@pytest.mark.slow
def test_replicates_runs(tmp_path):
    sizes = ["--channels", "70", "--own", "2", "--many", "60", "--dim", "16", "--rounds", "1"]
    replicates.main([*sizes, "--out", str(tmp_path)])
    rows = json.loads((tmp_path / "replicates.json").read_text())["rows"]
    assert {row["what"] for row in rows} == {"own null", "peak memory", "no null", "shared null"}
    assert all(row["bytes"] > 1 << 26 for row in rows if row["what"] == "peak memory")
