"""Agreement is checked before anything is timed, and each benchmark runs from end to end."""

import json

import numpy as np
import pytest

from benchmarks import replicates, scoring, solver, stability
from benchmarks.routes import ROUTES, Size

TINY = Size(6, patches=12, dim=16, replicates=3, concepts=6, pool=130)


# What peers warn of is their own affair.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning"),
    pytest.mark.filterwarnings("ignore:Sparse invariant checks:UserWarning"),
]


def needs(*packages):
    for package in packages:
        reason = f"{package} is in the bench group: uv run --group bench pytest"
        pytest.importorskip(package, reason=reason)


@pytest.fixture(scope="module")
def scorer():
    return scoring.Scorer(TINY)


@pytest.mark.parametrize("null", ["rotation-samples", "rotation-tangent"])
@pytest.mark.parametrize("route", ROUTES)
def test_the_same_assignments_give_the_same_scores(route, null):
    needs(*ROUTES[route].needs)
    if route == "cuml":
        pytest.skip("cuml needs a CUDA device")
    found = scoring.agreement(scoring.Scorer(TINY._replace(s_null=null)), [0, 3, 5], route)
    assert max(found.s, found.q, found.d) < 1e-6
    assert found.better >= 0.8
    assert abs(found.null_above) < 0.1


@pytest.mark.parametrize("wrong", [1e-5, np.nan])
@pytest.mark.parametrize("part", "sqd")
def test_a_disagreement_stops_the_benchmark(scorer, monkeypatch, part, wrong):
    class Wrong(scoring.Scorer):
        def run(self, *arguments, **options):
            scores = super().run(*arguments, **options)
            getattr(scores, part)[0] += wrong
            return scores

    with pytest.raises(SystemExit, match="disagree"):
        scoring.agreement(Wrong(TINY), [0, 3], "scikit-learn")


def test_a_peers_own_silhouette_that_is_wrong_stops_the_benchmark(scorer, monkeypatch):
    way = ROUTES["scikit-learn"]
    ours = scorer.run(channels=[0, 3]).assignments

    def wrong(sets, labels, device):
        own = np.array_equal(labels, ours)  # ours are taken as they are, its own are not
        return way.silhouette(sets, labels, device) + (0 if own else 1e-5)

    monkeypatch.setitem(ROUTES, "scikit-learn", way._replace(silhouette=wrong))
    with pytest.raises(SystemExit, match="disagree"):
        scoring.agreement(scorer, [0, 3], "scikit-learn")


def test_solver_reports_every_solver(tmp_path):
    needs("faiss")
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


SMALL = ["--channels", "12", "--part", "8", "--scikit-learn", "2", "--faiss", "2"]
SMALL += ["--fast-pytorch-kmeans", "1", "--torch-kmeans", "1", "--semanticlens", "4"]
SMALL += ["--dim", "16", "--rounds", "1", "--nulls", "rotation-samples"]


def test_sizes_that_no_option_sets_are_written(tmp_path, monkeypatch):
    monkeypatch.setattr(scoring, "compare", lambda *arguments: None)
    scoring.main([*SMALL, "--processes", "1", "--out", str(tmp_path)])
    settings = json.loads((tmp_path / "scoring.json").read_text())["facts"]["settings"]
    assert (settings["replicates"], settings["patches"], settings["seedings"]) == (20, 50, 5)


@pytest.mark.slow
def test_scoring_runs(tmp_path):
    needs("faiss")
    scoring.main([*SMALL, "--processes", "2", "--out", str(tmp_path)])
    rows = json.loads((tmp_path / "scoring.json").read_text())["rows"]
    whole = [row for row in rows if row["what"] == "SQD" and row["route"] != "psi-engine"]
    left_out = {row["route"] for row in rows if row.get("left_out")}
    assert {row["route"] for row in whole} == ROUTES.keys() - left_out
    assert {"scikit-learn", "faiss"}.isdisjoint(left_out)
    assert all(row["times_p50"] > 1 for row in whole if row["processes"] == 1)
    assert {row["route"] for row in rows if row["what"] == "agreement"} >= ROUTES.keys()
    lens = [row["route"] for row in rows if row["what"] == "polysemanticity"]
    assert lens == ([] if "semanticlens" in left_out else ["psi-engine", "semanticlens"])


@pytest.mark.slow
def test_peers_that_are_absent_have_a_row_that_says_so(monkeypatch):
    for name, way in ROUTES.items():
        if name != "scikit-learn":
            monkeypatch.setitem(ROUTES, name, way._replace(needs=("no_such_package",)))
    results = scoring.main([*SMALL, "--processes", "1", "--semanticlens", "0"])
    rows = [row for row in results.rows if row["what"] == "agreement"]
    said = {row["route"]: row.get("left_out") for row in rows}
    others = dict.fromkeys(ROUTES.keys() - {"scikit-learn"}, "not installed: no_such_package")
    assert said == {"scikit-learn": None} | others


@pytest.mark.slow
def test_replicates_runs(tmp_path):
    sizes = ["--channels", "70", "--own", "2", "--many", "60", "--dim", "16", "--rounds", "1"]
    replicates.main([*sizes, "--out", str(tmp_path)])
    rows = json.loads((tmp_path / "replicates.json").read_text())["rows"]
    assert {row["what"] for row in rows} == {"own null", "peak memory", "no null", "shared null"}
    assert all(row["bytes"] > 1 << 26 for row in rows if row["what"] == "peak memory")
