import numpy as np
import pytest
import torch
from sklearn.cluster import KMeans

from psi_engine import baselines
from psi_engine.errors import InputError
from tests.reference import baselines as reference


@pytest.mark.parametrize(("dtype", "atol"), [(torch.float64, 1e-6), (torch.float32, 1e-5)])
def test_clarity_and_redundancy_equal_loops(two_modes, dtype, atol):
    z = two_modes.to(dtype)
    plain = z.double().numpy()
    want = [reference.clarity(x) for x in plain]
    assert baselines.clarity(z).tolist() == pytest.approx(want, abs=atol)
    want = reference.redundancy(plain)
    assert baselines.redundancy(z).tolist() == pytest.approx(want, abs=atol)


@pytest.mark.parametrize("shift", [False, True])
def test_polysemanticity_equals_scikit_learn(two_modes, shift):
    centre = two_modes.mean((0, 1)) if shift else torch.zeros(8)
    poly = baselines.semanticlens_polysemanticity(two_modes, centre=centre if shift else None)
    for c, z in enumerate(two_modes.double().numpy()):
        fit = KMeans(2, n_init=10, random_state=123).fit(z - centre.double().numpy())
        assert min(np.bincount(fit.labels_)) >= 2
        want = 1 - reference.cosine(*fit.cluster_centers_)
        assert float(poly[c]) == pytest.approx(want, abs=1e-6)


@pytest.mark.parametrize("at", [0, 15])
def test_a_lone_outlier_takes_the_other_formula(at):
    generator = torch.Generator().manual_seed(2)
    z = torch.randn(1, 20, 6, generator=generator) * 0.1 + 1
    z[0, at] = -50.0
    plain = z[0].double().numpy()
    want = 1 - np.mean([reference.cosine(plain.mean(0), row) for row in plain[:10]])
    assert float(baselines.semanticlens_polysemanticity(z)) == pytest.approx(want, abs=1e-9)


def test_identical_patches_are_not_polysemantic():
    z = torch.ones(1, 12, 6) * torch.tensor([1.0, -2, 3, 0, 5, 1])
    assert float(baselines.semanticlens_polysemanticity(z)) == pytest.approx(0, abs=1e-12)
    assert float(baselines.clarity(z)) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("size", [2.0**-600, 2.0**600])
def test_the_size_of_the_embeddings_changes_no_bit(two_modes, size):
    z = two_modes.double()
    centre = z.mean((0, 1))
    for measure in (
        baselines.clarity,
        baselines.redundancy,
        baselines.semanticlens_polysemanticity,
    ):
        assert torch.equal(measure(z * size), measure(z))
    got = baselines.semanticlens_polysemanticity(z * size, centre=centre * size)
    assert torch.equal(got, baselines.semanticlens_polysemanticity(z, centre=centre))


def test_what_does_not_fit_is_refused(two_modes):
    for wrong in (two_modes[0], two_modes[:, :1], two_modes[:0]):
        with pytest.raises(InputError, match="embeddings have the wrong shape"):
            baselines.clarity(wrong)
    assert torch.isnan(baselines.redundancy(two_modes[:1])).all()
