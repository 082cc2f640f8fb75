"""Paired tests against SciPy and against the loops of tests/reference."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from psi_engine.errors import InputError
from psi_engine.paired_tests import EXACT_PAIRS, holm, mean_intervals, paired_test
from tests.reference import paired_tests as reference

# Student's sleep data (1908), hours gained under two drugs: a known answer for every statistic.
FIRST = [0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0]
SECOND = [1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4]


def test_students_sleep_data() -> None:
    found = paired_test(FIRST, SECOND)
    assert found.n == 10
    assert found.difference == pytest.approx(-1.58)
    assert found.t == pytest.approx(-4.0621, abs=5e-5)
    assert found.t_p == pytest.approx(0.002833, abs=5e-7)
    assert found.wilcoxon == 0
    assert found.wilcoxon_p == 2 / 2**9  # one pair does not differ
    assert found.rank_biserial == -1
    assert found.dz == pytest.approx(found.t / math.sqrt(10))


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(-3, 3), st.integers(-3, 3)), min_size=2, max_size=9).filter(
        lambda pairs: len({a - b for a, b in pairs}) > 1
    )
)
def test_ties_and_zeros_are_counted_exactly(pairs: list[tuple[int, int]]) -> None:
    x, y = [float(a) for a, _ in pairs], [float(b) for _, b in pairs]
    found = paired_test(x, y)
    t, dz = reference.paired_t(x, y)
    statistic, p, balance = reference.signed_ranks(x, y)
    assert (found.t, found.dz) == pytest.approx((t, dz))
    assert found.wilcoxon == statistic
    assert found.wilcoxon_p == pytest.approx(min(1.0, p), abs=1e-12)
    assert found.rank_biserial == pytest.approx(balance)


@pytest.mark.parametrize("n", [2, 7, 20, EXACT_PAIRS])
def test_without_ties_both_p_are_scipys(n: int) -> None:
    rng = np.random.default_rng(n)
    x, y = rng.normal(0.4, 1, n), rng.normal(0, 1, n)
    found = paired_test(x, y)
    assert found.wilcoxon_p == pytest.approx(stats.wilcoxon(x - y, method="exact").pvalue)
    assert found.t_p == pytest.approx(stats.ttest_rel(x, y).pvalue)


def test_many_pairs_take_scipys_approximation() -> None:
    rng = np.random.default_rng(0)
    x = np.round(rng.normal(0.2, 1, 80), 1)
    found = paired_test(x, np.zeros(80))
    assert found.wilcoxon_p == stats.wilcoxon(x, method="asymptotic").pvalue


def test_the_exact_p_goes_over_into_the_approximation() -> None:
    x = np.random.default_rng(1).normal(0.3, 1, EXACT_PAIRS)
    approximate = stats.wilcoxon(x, method="asymptotic").pvalue
    assert paired_test(x, np.zeros(len(x))).wilcoxon_p == pytest.approx(approximate, rel=0.05)


def test_degenerate_pairs() -> None:
    assert paired_test([1.0, 2.0], [1.0, 2.0])[1:] == (0, 0, 1, 0, 1, 0, 0)
    constant = paired_test([1.0, 2.0, 3.0], [0.0, 1.0, 2.0])
    assert all(map(math.isnan, (constant.t, constant.t_p, constant.dz)))
    assert (constant.wilcoxon_p, constant.rank_biserial) == (0.25, 1)
    single = paired_test([1.0], [0.5])
    assert (single.n, single.difference) == (1, 0.5)
    assert math.isnan(single.t_p)
    assert math.isnan(single.wilcoxon_p)
    assert paired_test([], []).n == 0


@pytest.mark.parametrize(
    ("x", "y"), [([1.0, 2.0], [1.0]), ([1.0, float("nan")], [0.0, 0.0]), ([[1.0]], [[2.0]])]
)
def test_pairs_that_do_not_match_are_refused(x: object, y: object) -> None:
    with pytest.raises(InputError):
        paired_test(x, y)


def test_holm_steps_down_and_leaves_untested_out() -> None:
    p = [0.01, 0.04, 0.03, 0.005]
    assert holm(p).tolist() == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm(p).tolist() == pytest.approx(reference.holm(p))
    with_gap = holm([0.01, float("nan"), 0.04, 0.03, 0.005])
    assert math.isnan(with_gap[1])
    assert np.delete(with_gap, 1).tolist() == pytest.approx(reference.holm(p))
    assert holm([0.6, 0.9]).tolist() == [1.0, 1.0]


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_is_the_loop(p: list[float]) -> None:
    assert holm(p).tolist() == pytest.approx(reference.holm(p))


def test_intervals_of_means_hold_the_mean_as_often_as_they_say() -> None:
    rng = np.random.default_rng(5)
    values = rng.normal(0, 1, (1, 300, 40))
    held = 0
    for number in range(300):
        low, high = mean_intervals(number, values[:, number], 400)
        held += low[0] <= 0 <= high[0]
    assert 0.90 <= held / 300 <= 0.98  # percentile intervals of 40 items fall short by about 1 %


def test_intervals_resample_whole_items() -> None:
    """A quantity and its double have an interval and its double; a constant sum stays one."""
    x = np.random.default_rng(2).normal(0, 1, 12)
    low, high = mean_intervals(7, np.stack([x, 2 * x, 3 - x]), 200)
    assert low[1] == pytest.approx(2 * low[0])
    assert low[2] == pytest.approx(3 - high[0])
    again = mean_intervals(7, x[None], 200)
    assert (again[0][0], again[1][0]) == pytest.approx((low[0], high[0]))
    assert mean_intervals(8, x[None], 200)[0][0] != low[0]
    assert np.isnan(mean_intervals(7, x[None, :1], 200)).all()


@pytest.mark.parametrize("shift", [0.1, -1 / 3, 1e6])
def test_one_shift_of_all_pairs_has_no_spread_but_rounding(shift: float) -> None:
    x = np.random.default_rng(5).normal(size=40)
    same = paired_test(x + shift, x)
    assert np.isnan([same.t, same.t_p, same.dz]).all()
    assert same.difference == pytest.approx(shift)
    assert same.rank_biserial == np.sign(shift)
    moved = x + shift
    moved[0] += 1e-6 * abs(shift)
    assert np.isfinite(paired_test(moved, x).t)
