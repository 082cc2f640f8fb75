"""The loops that psi-engine is timed against compute what they say."""

import numpy as np
import pytest
from sklearn.metrics import normalized_mutual_info_score

from benchmarks import routes
from benchmarks.problems import clip_like, generator


@pytest.fixture(scope="module")
def rows():
    return clip_like([1], 30, 24).embeddings[0]


def test_silhouettes_from_the_gram_matrix_are_scikit_learns(rows):
    rng = generator(0, "labels")
    for k in (2, 3, 5):
        labels = rng.integers(0, k, len(rows))
        labels[:k] = np.arange(k)
        expected = routes.silhouette_scikit_learn(rows, labels)
        assert routes.silhouette_gram(rows, labels) == pytest.approx(expected, abs=1e-6)
    alone = np.zeros(len(rows), np.int64)
    alone[4] = 1
    expected = routes.silhouette_scikit_learn(rows, alone)
    assert routes.silhouette_gram(rows, alone) == pytest.approx(expected, abs=1e-6)


def test_nmi_by_counting_is_scikit_learns():
    rng = generator(0, "labels")
    assignments, classes = rng.integers(0, 4, 50), rng.integers(0, 9, 50)
    shuffled = np.stack([rng.permutation(classes) for _ in range(6)])
    expected = [normalized_mutual_info_score(assignments, row) for row in shuffled]
    np.testing.assert_allclose(routes.nmi_counting(assignments, shuffled), expected, atol=1e-12)
    np.testing.assert_allclose(routes.nmi_scikit_learn(assignments, shuffled), expected)
    assert routes.nmi_counting(np.zeros(5, int), np.zeros((1, 5), int)) == 0


def test_null_sets_are_rotations_about_the_mean(rows):
    size = routes.Size(1, patches=30, dim=24, replicates=2, concepts=5, pool=40)
    loop = routes.Loop(size, "scikit-learn", [1])
    turn = loop.rotations[0].astype(np.float64)
    np.testing.assert_allclose(turn @ turn.T, np.eye(30), atol=1e-5)
    np.testing.assert_allclose(turn.sum(1), 1, atol=1e-5)
    assert np.abs(turn - np.eye(30)).max() > 0.1
    for null in ("rotation-samples", "rotation-tangent"):
        loop.size = size._replace(s_null=null)
        for drawn in loop._null_sets(rows):
            np.testing.assert_allclose(np.linalg.norm(drawn, axis=1), 1, atol=1e-5)
            # the mean stays, the points do not
            assert np.dot(*(x.sum(0) / np.linalg.norm(x.sum(0)) for x in (drawn, rows))) > 0.98
            assert np.abs(drawn - rows).max() > 0.05


def test_gap_and_objective_are_their_formulas(rows):
    similarities = np.array([[0.1, 0.5, 0.3], [0.9, 0.2, 0.4]])
    assert routes.gap(similarities) == pytest.approx((0.2 + 0.5) / 2)
    labels = np.arange(len(rows)) % 2
    expected = np.linalg.norm(rows[::2].sum(0)) + np.linalg.norm(rows[1::2].sum(0))
    assert routes.objective(rows, labels) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("route", ["scikit-learn", "faiss"])
def test_a_loop_scores_its_channels(route):
    if route == "faiss":
        pytest.importorskip("faiss", reason="faiss is in the bench group: uv run --group bench")
    size = routes.Size(3, patches=12, dim=16, replicates=2, concepts=5, pool=40)
    first, second = routes.Loop(size, route, [0, 2]).run()
    assert 0 <= first.s <= 1
    assert first.s != second.s
    assert first.s_null.shape == first.q_null.shape == first.d_null.shape == (2,)
    assert (first.seconds > 0).all()
