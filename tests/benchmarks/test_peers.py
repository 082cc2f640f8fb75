"""What the package semanticlens computes, computed here."""

import numpy as np
import pytest
import torch

from benchmarks import peers

# Imported when a test needs it, not when tests are collected: it takes seconds.


@pytest.fixture(autouse=True)
def semanticlens():
    reason = "the package semanticlens is not installed: uv run --group bench pytest"
    return pytest.importorskip("semanticlens", reason=reason)


def test_every_measure_has_parity_and_is_timed(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "some.npz", embeddings=rng.standard_normal((9, 12, 16)) + 1)
    small = "--channels 8 --patches 20 --dim 24 --rounds 1 --embeddings some.npz --out ."
    monkeypatch.chdir(tmp_path)
    results = peers.main(small.split())
    seen = [(row["source"], row["channels"], row["measure"]) for row in results.rows]
    measures = ("clarity", "redundancy", "polysemanticity")
    assert seen == [(name, 8, m) for name in ("clip_like", "some") for m in measures]
    for row in results.rows:
        assert row["difference"] <= 1e-5
        assert row["times_p50"] > 0
    assert {"peers.csv", "peers.json"} <= {file.name for file in tmp_path.iterdir()}


def test_polysemanticity_has_parity_where_a_cluster_has_one_patch():
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(2, 20, 6, generator=generator) * 0.1 + 1
    x[0, 15] = x[1, 0] = -50.0
    peer = peers.peers()["polysemanticity"]
    assert torch.allclose(peer.ours(x), peer.theirs(x).double(), atol=1e-5)


def test_sums_of_squares_tell_optima_apart(monkeypatch):
    x = torch.tensor([[[1.0, 1], [2, 1], [10, 1], [11, 1]]])
    here, there, same = peers.sums_of_squares(x)
    assert (here.tolist(), there.tolist(), same.tolist()) == ([1.0], [1.0], [True])

    class Worse:
        def __init__(self, *_, **__): ...

        def fit(self, _):
            self.labels_ = np.array([0, 1, 1, 1])
            return self

    monkeypatch.setattr(peers, "KMeans", Worse)
    here, there, same = peers.sums_of_squares(x)
    assert same.tolist() == [False]
    assert there[0] > here[0]


def test_no_parity_stops_before_the_clock(monkeypatch):
    broken = {"clarity": peers.Peer(lambda x: x[:, 0, 0], lambda x: x[:, 0, 0] + 2e-5)}
    monkeypatch.setattr(peers, "peers", lambda: broken)
    sizes = ["--channels", "2", "--patches", "4", "--dim", "3", "--rounds", "1"]
    with pytest.raises(SystemExit, match=r"clarity differs by 2\.\d*e-05"):
        peers.main(sizes)
    broken["clarity"] = peers.Peer(lambda x: x[:, 0, 0], lambda x: x[:, 0, 0] * torch.nan)
    with pytest.raises(SystemExit, match="clarity differs by nan"):
        peers.main(sizes)
