import numpy as np
import pytest
import torch
from sklearn.cluster import KMeans

from psi_engine import baselines
from psi_engine.errors import InputError
from tests.reference import baselines as reference


@pytest.fixture
def two_modes():
    generator = torch.Generator().manual_seed(0)
    side = (torch.arange(24) % 2).float()[:, None] * torch.randn(6, 1, 8, generator=generator) * 3
    return torch.randn(6, 24, 8, generator=generator) + side + 2


@pytest.mark.parametrize(("dtype", "atol"), [(torch.float64, 1e-6), (torch.float32, 1e-5)])
def test_closed_forms_equal_loops(two_modes, dtype, atol):
    z = two_modes.to(dtype)
    a = torch.rand(6, 24, generator=torch.Generator().manual_seed(1)).to(dtype)
    plain = z.double().numpy()
    clarity, mono = baselines.clarity(z), baselines.monosemanticity(z, a)
    for c in range(6):
        assert float(clarity[c]) == pytest.approx(reference.clarity(plain[c]), abs=atol)
        want = reference.monosemanticity(plain[c], a[c].double().numpy())
        assert float(mono[c]) == pytest.approx(want, abs=atol)
    want = reference.redundancy(plain)
    assert baselines.redundancy(z).tolist() == pytest.approx(want, abs=atol)


def test_equal_weights_make_ms_clarity(two_modes):
    got = baselines.monosemanticity(two_modes, torch.full((6, 24), 0.3))
    assert torch.allclose(got, baselines.clarity(two_modes), atol=1e-9)


def test_two_means_measures_equal_scikit_learn(two_modes):
    poly = baselines.semanticlens_polysemanticity(two_modes)
    within, between = baselines.pure_ratio(two_modes)
    for c in range(6):
        z = two_modes[c].double().numpy()
        fit = KMeans(2, n_init=10, random_state=123).fit(z)
        want = 1 - reference.cosine(*fit.cluster_centers_)
        assert float(poly[c]) == pytest.approx(want, abs=1e-6)
        inside, apart = reference.within_and_between(z, fit.labels_)
        assert float(within[c]) == pytest.approx(inside, abs=1e-9)
        assert float(between[c]) == pytest.approx(apart, abs=1e-9)


def test_a_lone_outlier_takes_the_other_formula():
    generator = torch.Generator().manual_seed(2)
    z = torch.randn(1, 20, 6, generator=generator) * 0.1 + 1
    z[0, 15] = -50.0
    plain = z[0].double().numpy()
    want = 1 - np.mean([reference.cosine(plain.mean(0), row) for row in plain[:10]])
    assert float(baselines.semanticlens_polysemanticity(z)) == pytest.approx(want, abs=1e-9)


def test_interpretability_knows_separate_from_mixed():
    generator = torch.Generator().manual_seed(3)
    top = torch.randn(2, 30, 16, generator=generator)
    bottom = torch.randn(2, 30, 16, generator=generator)
    top[0] += 3
    bottom[0] -= 3
    got = baselines.interpretability(top, bottom)
    assert float(got[0]) > 0.99
    assert 0.3 < float(got[1]) < 0.7
    with pytest.raises(InputError, match="too few examples"):
        baselines.interpretability(top[:, :9], bottom)


def test_broken_channels_are_nan_and_leave_the_others(two_modes):
    broken = two_modes.clone()
    broken[2, 3, 1] = float("nan")
    broken[4, 0] = 0.0
    weights = torch.ones(6, 24)
    for measure in (
        baselines.clarity,
        baselines.redundancy,
        baselines.semanticlens_polysemanticity,
        lambda z: baselines.monosemanticity(z, weights),
        lambda z: baselines.pure_ratio(z)[0],
        lambda z: baselines.interpretability(z, two_modes),
    ):
        got = measure(broken)
        assert torch.isnan(got).tolist() == [False, False, True, False, True, False]


def test_what_does_not_fit_is_refused(two_modes):
    with pytest.raises(InputError, match="activations do not fit"):
        baselines.monosemanticity(two_modes, torch.ones(6, 23))
    with pytest.raises(InputError, match="activations are negative"):
        baselines.monosemanticity(two_modes, -torch.ones(6, 24))
    with pytest.raises(InputError, match="embeddings have the wrong shape"):
        baselines.clarity(two_modes[0])
    assert torch.isnan(baselines.redundancy(two_modes[:1])).all()
    assert torch.isnan(baselines.monosemanticity(two_modes, torch.zeros(6, 24))).all()


def test_all_measures_at_once_equal_each_alone_in_any_chunks(two_modes, monkeypatch):
    whole = torch.tensor([True, True, False, True, True, True])
    weights = torch.rand(6, 24, generator=torch.Generator().manual_seed(4))
    z = two_modes[whole]
    intra, inter = baselines.pure_ratio(z)
    alone = {
        "semanticlens_polysemanticity": baselines.semanticlens_polysemanticity(z),
        "semanticlens_redundancy": baselines.redundancy(z),
        "monosemanticity": baselines.monosemanticity(z, weights[whole]),
        "pure_intra": intra,
        "pure_inter": inter,
    }
    clustered = []
    two_means = baselines._two_means
    monkeypatch.setattr(
        baselines, "_two_means", lambda x, seed: clustered.append(len(x)) or two_means(x, seed)
    )
    for at_once, chunks in ((64, [5]), (2, [2, 2, 1])):
        monkeypatch.setattr(baselines, "_AT_ONCE", at_once)
        clustered.clear()
        got = baselines.measure_all(two_modes, weights, whole)
        assert clustered == chunks  # once per channel, though two measures need it
        assert set(got) == set(baselines.MEASURES)
        for name, values in got.items():
            assert torch.isnan(values).tolist() == (~whole).tolist(), name
            assert torch.equal(values[whole], alone[name]), name
    none = baselines.measure_all(two_modes, weights, torch.zeros(6, dtype=torch.bool))
    assert all(torch.isnan(values).all() for values in none.values())


def test_a_nan_weight_leaves_the_patch_out(two_modes):
    weights = torch.ones(6, 24)
    weights[1, 3] = float("nan")
    left_out = weights.nan_to_num(0.0)
    got = baselines.monosemanticity(two_modes, weights)
    assert torch.equal(got, baselines.monosemanticity(two_modes, left_out))
    assert torch.isfinite(got).all()
