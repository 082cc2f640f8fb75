"""Curves: slopes of their points, memory above what was held, inputs read part by part."""

import json
from argparse import Namespace

import numpy as np
import pytest

import psi_engine as psi
from benchmarks import curves
from benchmarks.harness import in_fresh_process
from benchmarks.problems import moving_windows
from psi_engine.config import ScoreConfig

SMALL = Namespace(seed=0, dim=64, memory=64, device="cpu", rounds=2, patience=60.0)


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(curves, "POOL", 300)
    monkeypatch.setattr(curves, "CONCEPTS", 4)


def test_slopes_are_those_of_every_pair_in_the_upper_range():
    sizes = [1, 10, 100, 1000]
    quadratic = [9.0, 3.0, *(7 * n**2 / 1e4 for n in (100, 1000))]
    assert curves.pairwise_slopes(sizes, quadratic, 1) == pytest.approx((2, 2, 2))
    assert curves.pairwise_slopes(sizes, quadratic, 2) == pytest.approx((1, 1, 1))
    assert curves.pairwise_slopes([5, 1000], [1.0, 2.0], 1) is None
    bent = curves.pairwise_slopes([100, 200, 400], [1.0, 2.0, 8.0], 1)
    assert bent == pytest.approx(np.percentile([1, 2, 1.5], (20, 50, 80)))


def test_the_most_memory_is_unknown_where_any_size_s_is():
    assert curves.most_beyond([3, 0, 7]) == 7
    assert curves.most_beyond([0]) == 0
    assert curves.most_beyond([3, None]) is None
    assert curves.most_beyond([]) is None


def test_windows_are_channels_of_several_modes_in_little_memory():
    rows, labels = moving_windows(100_000, 6, 8)
    assert (rows.shape, labels.shape) == ((100_000, 6, 8), (100_000, 6))
    base = rows
    while base.base is not None:
        base = base.base
    assert base.nbytes < 3 * 2**20
    assert not rows.flags.writeable
    again, classes = moving_windows(100_000, 6, 8)
    np.testing.assert_array_equal(rows[77_000], again[77_000])
    np.testing.assert_array_equal(labels[77_000], classes[77_000])
    few, _ = moving_windows(100, 50, 512)
    unit = few / np.linalg.norm(few, axis=2, keepdims=True)
    cosines = (unit @ unit.transpose(0, 2, 1)).mean((1, 2))
    assert 0.45 < np.median(cosines) < 0.8
    scores = psi.score(few, config=ScoreConfig(replicates=20, restarts=2), device="cpu")
    assert len(set(scores.n_clusters.tolist())) > 1
    assert scores.status.count("ok") == 100


def test_a_view_is_scored_as_its_copy_is():
    rows, labels = moving_windows(40, 12, 64)
    config = ScoreConfig(replicates=20, restarts=2, memory=1 << 20)
    pool = np.random.default_rng(0).standard_normal((300, 64))
    view = psi.score(rows, labels, pool=pool, config=config, device="cpu")
    copy = psi.score(rows.copy(), labels.copy(), pool=pool, config=config, device="cpu")
    assert view.status == ("ok",) * 40
    assert view.log_psi.tolist() == copy.log_psi.tolist()


@pytest.mark.parametrize("parts", ["S", "SQD"])
def test_a_row_is_measured(small, parts):
    row = curves.score_afresh(parts, "pool", curves.Size(30, 12, 20), SMALL)
    assert row["rounds"] == 2
    assert row["seconds"].p50 > 0
    # assignments and silhouettes alone are 16 bytes a patch
    assert row["output_bytes"] > 30 * 12 * 16
    assert row["beyond_bytes"] is None or 0 <= row["beyond_bytes"] < row["before_bytes"]


def test_every_curve_covers_what_it_says():
    found = {(c.grows, c.null, c.parts): c for c in curves.curves(long=False)}
    assert max(found["channels", "pool", "S"].sizes) == 10**6
    assert max(found["channels", "rotation-tangent", "S"].sizes) == 10**4
    for null in ("pool", "rotation-tangent"):
        sizes = found["patches", null, "SQD"].sizes
        assert (sizes[0], sizes[-1]) == (20, 1000)
        assert found["draws", null, "SQD"].sizes[-1] == 10**4
    longer = {(c.null, c.grows): max(c.sizes) for c in curves.curves(long=True)}
    assert longer["rotation-tangent", "channels"] == 10**5
    for curve in found.values():
        assert curve.at(curve.sizes[0])._asdict()[curve.grows] == curve.sizes[0]


def with_a_copy(options):
    """What a benchmark of the same row holds when scoring keeps a copy of its input."""
    honest = psi.score

    def copying(embeddings, **given):
        held = np.array(embeddings)
        return honest(held, **given)

    psi.score = copying
    return curves.score_afresh("S", "pool", curves.Size(20_000, 12, 20), options)


@pytest.mark.slow
def test_a_copy_of_the_input_would_be_seen():
    """20,000 channels of 12 x 64 float32 are 61 MB; the view of them holds 2 MB."""
    options = Namespace(**(vars(SMALL) | {"dim": 64, "memory": 4, "rounds": 1}))
    rows = {}
    rows["view"], _ = in_fresh_process(
        curves.score_afresh, "S", "pool", curves.Size(20_000, 12, 20), options
    )
    rows["copy"], _ = in_fresh_process(with_a_copy, options)
    assert rows["view"]["beyond_bytes"] is not None
    assert rows["copy"]["beyond_bytes"] - rows["view"]["beyond_bytes"] > 40 << 20


@pytest.mark.slow
def test_curves_run(tmp_path):
    options = ["--largest", "100", "--rounds", "1", "--dim", "64", "--out", str(tmp_path)]
    curves.main(options)
    rows = json.loads((tmp_path / "curves.json").read_text())["rows"]
    assert {row["what"] for row in rows} == {"size", "slope"}
    sizes = [row for row in rows if row["what"] == "size"]
    assert all(row["seconds_p20"] <= row["seconds_p80"] for row in sizes)
    assert {row["curve"] for row in rows if row["what"] == "slope"} == {"patches"}
