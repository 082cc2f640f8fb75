"""Rank correlations are SciPy's, of the sample and of every resample."""

import numpy as np
import pytest
from scipy import stats

from psi_engine.detection import resample
from psi_engine.errors import InputError
from psi_engine.rank_correlation import rank_correlation, resampled_kendall, resampled_spearman


def pairs(n, ties, seed=0):
    random = np.random.default_rng(seed)
    x = random.normal(size=n)
    y = 0.6 * x + random.normal(size=n)
    return (np.round(x), np.round(y)) if ties else (x, y)


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("n", [5, 60])
def test_each_resample_is_what_scipy_says_of_the_drawn_pairs(n, ties, monkeypatch):
    monkeypatch.setattr("psi_engine.rank_correlation._AT_ONCE", 7 * n)
    x, y = pairs(n, ties)
    counts = resample(3, n, 40)
    spearman, kendall = (f(x, y, counts) for f in (resampled_spearman, resampled_kendall))
    compared = 0
    for column in range(41):
        drawn = np.repeat(np.arange(n), counts[:, column].astype(int))
        if min(len(set(x[drawn])), len(set(y[drawn]))) < 2:
            assert np.isnan(spearman[column])
            assert np.isnan(kendall[column])
            continue
        expected = stats.spearmanr(x[drawn], y[drawn]).statistic
        assert spearman[column] == pytest.approx(expected, abs=1e-12)
        expected = stats.kendalltau(x[drawn], y[drawn]).statistic
        assert kendall[column] == pytest.approx(expected, abs=1e-12)
        compared += 1
    assert compared > 30


def test_coefficients_and_p_are_scipys_and_intervals_are_quantiles_of_the_resamples():
    x, y = pairs(50, ties=True)
    found = rank_correlation(x, y, key=7, resamples=300)
    one, other = stats.spearmanr(x, y), stats.kendalltau(x, y)
    assert found.spearman == pytest.approx(one.statistic, abs=1e-12)
    assert found.spearman_p == pytest.approx(one.pvalue, rel=1e-9)
    assert found.kendall == pytest.approx(other.statistic, abs=1e-12)
    assert found.kendall_p == pytest.approx(other.pvalue, rel=1e-9)
    counts = resample(7, 50, 300)[:, 1:]
    ends = np.quantile(resampled_spearman(x, y, counts), [0.025, 0.975])
    np.testing.assert_allclose((found.spearman_low, found.spearman_high), ends)
    ends = np.quantile(resampled_kendall(x, y, counts), [0.025, 0.975])
    np.testing.assert_allclose((found.kendall_low, found.kendall_high), ends)
    assert found.spearman_low < found.spearman < found.spearman_high
    assert found != rank_correlation(x, y, key=8, resamples=300)


def test_intervals_cover_the_truth_about_as_often_as_they_say():
    """Bivariate normal with ρ = 0.5: Spearman's ρ is (6/π) asin(ρ/2)."""
    truth = 6 / np.pi * np.arcsin(0.25)
    held = 0
    for seed in range(200):
        random = np.random.default_rng(seed)
        x = random.normal(size=80)
        y = 0.5 * x + np.sqrt(0.75) * random.normal(size=80)
        found = rank_correlation(x, y, key=seed, resamples=200)
        held += found.spearman_low <= truth <= found.spearman_high
    assert 0.88 <= held / 200 <= 0.99


def test_pairs_with_a_missing_value_are_left_out_and_infinities_are_ranked():
    x, y = pairs(30, ties=False)
    gaps = x.copy()
    gaps[[3, 9]] = np.nan
    kept = np.delete(np.arange(30), [3, 9])
    assert rank_correlation(gaps, y, key=1) == rank_correlation(x[kept], y[kept], key=1)
    far = x.copy()
    far[x.argmin()], far[x.argmax()] = -np.inf, np.inf
    assert rank_correlation(far, y, key=1) == rank_correlation(x, y, key=1)


@pytest.mark.parametrize(
    ("x", "y"), [([1.0, 2.0, 3.0], [1.0, 2.0, 3.0]), ([1.0] * 9, np.arange(9.0))]
)
def test_too_few_pairs_or_no_spread_give_no_number(x, y):
    found = rank_correlation(x, y, key=0)
    assert found.n == len(x)
    assert np.isnan(found[1:]).all()


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(InputError, match="do not fit"):
        rank_correlation([1.0, 2.0], [1.0], key=0)
