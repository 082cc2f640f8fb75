import pytest
import torch
from sklearn.cluster import KMeans

from psi_engine import baselines
from tests.reference import baselines as reference


def test_distances_within_and_between_equal_loops_on_the_same_clusters(two_modes):
    within, between = baselines.pure_ratio(two_modes)
    for c, z in enumerate(two_modes.double().numpy()):
        fit = KMeans(2, n_init=10, random_state=0).fit(z)
        inside, apart = reference.within_and_between(z, fit.labels_)
        assert float(within[c]) == pytest.approx(inside, rel=1e-6)
        assert float(between[c]) == pytest.approx(apart, rel=1e-6)


def test_distances_keep_the_units_of_the_embeddings(two_modes):
    z = two_modes.double()
    for size in (2.0**-600, 2.0**600):
        for got, want in zip(baselines.pure_ratio(z * size), baselines.pure_ratio(z), strict=True):
            assert torch.equal(got, want * size)


def test_two_patches_have_nothing_within_and_equal_ones_nothing_between():
    apart = torch.tensor([[[1.0, 0.0], [0.0, 1.0]], [[1.0, 2.0], [1.0, 2.0]]])
    within, between = baselines.pure_ratio(apart)
    assert torch.isnan(within).tolist() == [True, False]
    assert torch.isnan(between).tolist() == [False, True]
    assert float(between[0]) == pytest.approx(2**0.5, rel=1e-6)
    assert float(within[1]) == 0
