"""What psi-engine is timed against computes what it says."""

import numpy as np
import pytest
from sklearn.metrics import normalized_mutual_info_score

from benchmarks import fits, routes
from benchmarks.problems import blobs, clip_like, generator

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
def rows():
    return clip_like([1], 30, 24).embeddings[0]


def labelings(n):
    rng = generator(0, "labels")
    for k in (2, 3, 5):
        labels = rng.integers(0, k, n)
        labels[:k] = np.arange(k)
        yield labels
    alone = np.zeros(n, np.int64)
    alone[4] = 1
    yield alone


def test_silhouettes_are_scikit_learns(rows):
    for labels in labelings(len(rows)):
        expected = fits.silhouette_scikit_learn(rows, labels)
        assert fits.silhouette_gram(rows, labels) == pytest.approx(expected, abs=1e-6)
    many = np.stack(list(labelings(len(rows))))
    sets = np.stack([rows] * len(many))
    expected = [fits.silhouette_scikit_learn(rows, labels) for labels in many]
    np.testing.assert_allclose(fits.silhouettes_torch(sets, many, "cpu"), expected, atol=1e-6)


def test_one_cluster_has_silhouette_0(rows):
    one = np.zeros(len(rows), np.int64)
    assert fits.silhouette_gram(rows, one) == 0
    assert fits.silhouettes_torch(rows[None], one[None], "cpu") == [0]


def test_nmi_by_counting_is_scikit_learns():
    rng = generator(0, "labels")
    assignments, classes = rng.integers(0, 4, 50), rng.integers(0, 9, 50)
    shuffled = np.stack([rng.permutation(classes) for _ in range(6)])
    expected = [normalized_mutual_info_score(assignments, row) for row in shuffled]
    np.testing.assert_allclose(fits.nmi_counting(assignments, shuffled), expected, atol=1e-12)
    np.testing.assert_allclose(fits.nmi_scikit_learn(assignments, shuffled), expected)
    assert fits.nmi_counting(np.zeros(5, int), np.zeros((1, 5), int)) == 0


def test_nmi_of_torchmetrics_is_scikit_learns():
    needs("torchmetrics")
    rng = generator(0, "labels")
    assignments, classes = rng.integers(0, 4, 50), rng.integers(0, 9, 50)
    shuffled = np.stack([rng.permutation(classes) for _ in range(3)])
    expected = fits.nmi_scikit_learn(assignments, shuffled)
    np.testing.assert_allclose(fits.nmi_torchmetrics(assignments, shuffled), expected, atol=1e-6)


@pytest.mark.parametrize("route", routes.ROUTES)
def test_every_route_finds_blobs_as_scikit_learn_does(route):
    """Far apart, so that all must agree; a route's S is that of scikit-learn's silhouette."""
    way = routes.ROUTES[route]
    needs(*way.needs)
    if route == "cuml":
        pytest.skip("cuml needs a CUDA device")
    sets = blobs(3, 24, 16)
    for k in (2, 3):
        labels = way.fit(sets, k, "cpu")
        assert labels.shape == (3, 24)
        found = way.silhouette(sets, labels, "cpu")
        for rows, own, score in zip(sets, labels, found, strict=True):
            assert score == pytest.approx(fits.silhouette_scikit_learn(rows, own), abs=1e-6)
            least = 0.98 * fits.objective(rows, fits.fit_scikit_learn(rows, k))
            assert fits.objective(rows, own) >= least


def test_batches_do_not_change_what_torch_kmeans_finds(monkeypatch):
    needs("torch_kmeans")
    sets = blobs(4, 20, 8)
    whole = fits.silhouettes_torch(sets, fits.fit_all_torch_kmeans(sets, 2, "cpu"), "cpu")
    monkeypatch.setattr(fits, "MEMORY", 1)
    single = fits.silhouettes_torch(sets, fits.fit_all_torch_kmeans(sets, 2, "cpu"), "cpu")
    np.testing.assert_allclose(whole, single, atol=0.05)


def test_what_is_missing_is_said():
    assert routes.missing(("numpy",)) is None
    assert routes.missing(("numpy", "no_such_package")) == "not installed: no_such_package"
    assert routes.missing(("numpy",), gpu=True) == "needs a CUDA device"
    assert routes.missing(("numpy",), gpu=True, device="cuda:1") is None


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
    assert fits.objective(rows, labels) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("route", ["scikit-learn", "faiss", "torch_kmeans"])
def test_a_loop_scores_its_channels(route):
    needs(*routes.ROUTES[route].needs)
    size = routes.Size(3, patches=12, dim=16, replicates=2, concepts=5, pool=40)
    loop = routes.Loop(size, route, [0, 2])
    first, second = loop.run()
    assert 0 <= first.s <= 1
    assert first.s != second.s
    assert first.s_null.shape == first.q_null.shape == first.d_null.shape == (2,)
    assert (first.seconds > 0).all()
    # the first set of each channel is the channel itself
    if route == "scikit-learn":
        for rows, channel in zip(loop.vision.embeddings, (first, second), strict=True):
            alone, _ = routes.separability(rows[None], loop.route)
            assert channel.s == alone[0]


def test_the_smallest_k_wins_a_tie():
    even = routes.Route(
        lambda sets, k, _: np.full(sets.shape[:2], k),
        lambda sets, labels, _: np.full(len(sets), 0.25),
        fits.nmi_counting,
        needs=(),
        channels=1,
    )
    score, labels = routes.separability(np.zeros((2, 6, 3), np.float32), even)
    assert score.tolist() == [0.25, 0.25]
    assert (labels == 2).all()
