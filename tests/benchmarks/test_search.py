"""The benchmark of search checks the exact route before it times, and runs from end to end."""

import json

import numpy as np
import pytest
import torch

from benchmarks import problems, search


@pytest.fixture
def alone(monkeypatch):
    """The work of the other processes in this one, whose settings come back afterwards."""
    threads = torch.get_num_threads()
    openmp = search.module.faiss.omp_get_max_threads()
    monkeypatch.setattr(search.module, "APPROXIMATE_FROM", search.module.APPROXIMATE_FROM)
    monkeypatch.setattr(search, "in_fresh_process", lambda work, *given: (work(*given), 10**9))
    yield
    torch.set_num_threads(threads)
    search.module.faiss.omp_set_num_threads(openmp)


def test_every_route_is_measured(alone, tmp_path):
    arguments = ("--rows", "600", "--dim", "16", "--rounds", "2", "--out", str(tmp_path))
    search.main(arguments)
    rows = json.loads((tmp_path / "search.json").read_text())["rows"]
    assert [row["route"] for row in rows] == ["exact", "parts"]
    for row in rows:
        assert row["query_ms_p50"] > 0
        assert row["batch_query_ms_p50"] > 0
        assert row["file_gb"] >= 600 * 16 * 4 / 1e9
        assert row["ask_peak_gb"] == row["build_peak_gb"] == 1.0
        assert min(row["recall_like"], row["recall_text"]) > 0.9
    assert rows[0]["recall_like"] == rows[0]["recall_text"] == 1


def test_an_exact_search_that_misses_rows_is_not_timed(alone, tmp_path, monkeypatch):
    search.build(600, 16, 0, "exact", tmp_path / "index.faiss")
    held = search.Nearest.nearest

    def wrong(self, queries, count):
        found, near = held(self, queries, count)
        return found + 1, near

    monkeypatch.setattr(search.Nearest, "nearest", wrong)
    with pytest.raises(SystemExit, match="nothing was timed"):
        search.ask(16, 0, "exact", tmp_path / "index.faiss", 1)


def test_prototypes_gather_around_their_concepts():
    made = np.concatenate([*problems.prototypes(problems._BLOCK + 50, 64, "rows", concepts=20)])
    assert made.shape == (problems._BLOCK + 50, 64)
    np.testing.assert_allclose(np.linalg.norm(made, axis=1), 1, atol=1e-6)
    first = next(problems.prototypes(problems._BLOCK, 64, "rows", concepts=20))
    np.testing.assert_array_equal(made[: problems._BLOCK], first)
    others = next(problems.prototypes(40, 64, "others", concepts=20))
    share = ((made[:2000] @ made[:2000].T) > 0.5).mean()
    assert 1 / 25 < share < 1 / 5  # one concept in twenty, and what the first directions share
    assert (made[:2000] @ others.T).max(0).min() > 0.5
    assert not np.array_equal(first[:40], others)
