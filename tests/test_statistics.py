import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import false_discovery_control

from psi_engine.statistics import (
    NullSummary,
    adjust,
    around,
    by_group,
    calibrate,
    intersection_union,
    quantile,
    quantiles,
    subsampling_interval,
    summarise,
    verdicts,
)
from tests.reference import statistics as reference


@pytest.mark.parametrize("shared", [True, False])
def test_summary_equals_a_loop(shared):
    generator = torch.Generator().manual_seed(0)
    observed = torch.rand(7, generator=generator, dtype=torch.float64)
    draws = torch.rand(7, 33, generator=generator, dtype=torch.float64)
    draws[2, 4] = observed[2]  # a tie counts as reaching
    got = summarise(observed, draws[0] if shared else draws)
    for c in range(7):
        want = reference.summary(float(observed[c]), draws[0 if shared else c].tolist())
        assert [float(x[c]) for x in got[:3]] == pytest.approx(want, abs=1e-14)
        want = reference.quantiles(draws[0 if shared else c].tolist())
        assert got.quantiles[c].tolist() == np.float32(want).tolist()


def test_z_is_zero_only_where_difference_and_spread_vanish():
    cases = [
        (0.5, 0.5, 0.0),
        (0.5, 0.4, 0.0),
        (0.5 + 5e-7, 0.5, 5e-7),
        (0.5, 0.5, 0.1),
        (0.9, 0.5, 0.1),
    ]
    x, mean, std = (torch.tensor(v, dtype=torch.float64) for v in zip(*cases, strict=True))
    got = calibrate(x, mean, std)
    want = [reference.z_score(*case) for case in cases]
    assert got.z.tolist() == pytest.approx(want, rel=1e-12)
    assert got.z[1] == pytest.approx(1e5, rel=1e-6)
    assert got.hat[0] == 0.5
    assert got.log_hat.tolist() == pytest.approx(
        [reference.log_sigmoid(z) for z in want], rel=1e-12
    )


@pytest.mark.parametrize("z", [-1e4, -750.0, 1e4])
def test_log_hat_neither_underflows_nor_overflows(z):
    x = torch.tensor([z], dtype=torch.float64)
    got = calibrate(x, torch.zeros(1, dtype=torch.float64), torch.ones(1, dtype=torch.float64))
    assert float(got.hat) == (z > 0)  # the product is lost
    assert float(got.log_hat) == pytest.approx(min(z, 0.0), rel=1e-5)  # its logarithm is not
    assert math.isfinite(got.log_hat)


def test_p_is_never_zero_and_one_where_every_draw_reaches():
    draws = torch.arange(19, dtype=torch.float64)
    observed = torch.tensor([100.0, 18.0, 17.5, -1.0], dtype=torch.float64)
    assert summarise(observed, draws).p.tolist() == [0.05, 0.1, 0.1, 1.0]


def test_rounding_below_a_draw_counts_as_a_tie():
    draws = torch.tensor([0.3, 0.5, 0.7], dtype=torch.float64)
    observed = torch.tensor([0.7 + 1e-12, 0.7 + 1e-6], dtype=torch.float64)
    assert summarise(observed, draws).p.tolist() == [0.5, 0.25]


@pytest.mark.parametrize("count", [2, 20, 40, 41, 1000, 1001])
def test_quantiles_equal_numpys(count):
    draws = torch.rand(9, count, generator=torch.Generator().manual_seed(count)).double()
    draws[3] = draws[3].round()  # ties
    draws[4] = 0.25
    got = quantiles(draws)
    want = np.quantile(draws.numpy(), np.arange(41) / 40, axis=1).T
    assert got.dtype == torch.float32
    np.testing.assert_allclose(got.numpy(), want, rtol=2.0**-23, atol=1e-12)
    assert torch.equal(got[:, 0], draws.amin(1).float())
    assert torch.equal(got[:, -1], draws.amax(1).float())
    assert (got.diff(dim=1) >= 0).all()
    assert all(torch.equal(quantiles(draws[i : i + 1])[0], got[i]) for i in range(9))


def test_quantiles_leave_the_draws_and_let_no_nan_pass_for_a_number():
    draws = torch.tensor([[3.0, 1.0, 2.0], [1.0, math.nan, 2.0], [0.0, -0.0, -0.0]]).double()
    before = draws.clone()
    got = quantiles(draws)
    assert torch.equal(draws.nan_to_num(), before.nan_to_num())
    assert got[0].tolist() == np.linspace(1, 3, 41, dtype=np.float32).tolist()
    assert got[1].isnan().all()
    assert not torch.signbit(got[2]).any()


@pytest.mark.parametrize("method", ["bh", "by"])
def test_adjusted_p_equals_a_loop_and_skips_nan(method):
    p = [0.01, 0.04, 0.03, 0.005, 0.9, 0.03, 1.0, 0.0005]
    want = reference.adjusted(p, method)
    with_gap = torch.tensor([*p[:3], math.nan, *p[3:]], dtype=torch.float64)
    got = adjust(with_gap, method)
    assert math.isnan(got[3])
    assert [x for x in got.tolist() if not math.isnan(x)] == pytest.approx(want, rel=1e-12)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    ranks=st.lists(st.integers(1, 21), min_size=1, max_size=40),
    method=st.sampled_from(["bh", "by"]),
)
def test_adjusted_p_equals_scipy_ties_included(ranks, method):
    p = torch.tensor(ranks, dtype=torch.float64) / 21
    want = false_discovery_control(p.numpy(), method=method)
    assert adjust(p, method).numpy() == pytest.approx(want, rel=1e-12)


@pytest.mark.parametrize("method", ["bh", "by"])
def test_few_false_ones_are_discovered(method):
    """At 10 %: 40 of 200 channels deviate; the share of false discoveries over 400 layers."""
    generator = torch.Generator().manual_seed(3)
    p = torch.rand(400, 200, generator=generator, dtype=torch.float64)
    p[:, :40] **= 6
    found = torch.stack([adjust(row, method) for row in p]) <= 0.1
    share = found[:, 40:].sum(1) / found.sum(1).clamp(min=1)
    error = float(share.double().std()) / 20
    assert float(share.double().mean()) < 0.1 * 160 / 200 + 3 * error
    assert float(found[:, :40].double().mean()) > 0.1  # else nothing was asked


@settings(max_examples=40, deadline=None, derandomize=True)
@given(values=st.lists(st.floats(-5, 5), min_size=1, max_size=12), q=st.floats(0, 1))
def test_quantiles_equal_numpy(values, q):
    got = quantile(torch.tensor([values], dtype=torch.float64), q)
    assert float(got) == pytest.approx(np.quantile(values, q), abs=1e-12)


def test_adjusting_nothing_gives_nothing():
    assert torch.isnan(adjust(torch.full((3,), math.nan, dtype=torch.float64))).all()


def test_psi_p_is_the_largest_and_missing_where_one_is():
    a, b = torch.tensor([0.1, 0.2, math.nan]), torch.tensor([0.3, 0.05, 0.1])
    got = intersection_union([a, b])
    assert got[:2].tolist() == pytest.approx([0.3, 0.2])
    assert math.isnan(got[2])


def test_verdicts_by_hand():
    psi = torch.tensor([0.01, 0.2, 0.2, math.nan, 0.05])
    clarity = torch.tensor([0.5, 0.01, 0.5, math.nan, 0.01])
    words = verdicts(psi, clarity, 0.0501)
    assert words == ("polysemantic", "monosemantic", "random-like", "not scorable", "polysemantic")


def test_groups_are_put_back_in_place():
    groups = torch.tensor([3, 2, 3, 5])

    def compare(group, rows):
        value = (rows + 10 * group).to(torch.float64)
        return NullSummary(value, value + 0.1, value + 0.2, value.float()[:, None].repeat(1, 41))

    got = by_group(groups, compare)
    assert got.mean.tolist() == [30.0, 21.0, 32.0, 53.0]
    assert torch.equal(got.quantiles, got.mean.float()[:, None].expand(-1, 41))


def test_interval_covers_as_often_as_it_says():
    """For a mean of n values, half samples must give the interval of the mean itself."""
    generator = torch.Generator().manual_seed(2)
    n, trials, count = 50, 2000, 200
    values = torch.randn(trials, n, generator=generator, dtype=torch.float64) - 5.0
    order = torch.rand(trials, count, n, generator=generator).argsort(-1)[..., : n // 2]
    draws = values[:, None].expand(-1, count, -1).gather(2, order).mean(-1)
    centre = values.mean(1)
    moved = around(centre[:, None], draws + 3.0, n, n // 2)  # a biased score moves no interval
    low, high = subsampling_interval(centre.exp(), moved)
    covered = ((low.log() <= -5.0) & (high.log() >= -5.0)).double().mean()
    # 95 % less what 200 subsamples and no t-correction cost; √(1/2) of the width gives 0.82
    assert 0.92 < float(covered) < 0.965


def test_interval_holds_psi_and_stays_in_range():
    log_psi = torch.tensor([-0.01, -3.0], dtype=torch.float64)
    draws = torch.tensor([[-5.0, -4.0, -3.5], [-2.0, -1.0, -0.001]], dtype=torch.float64)
    low, high = subsampling_interval(log_psi.exp(), draws)
    assert (low <= log_psi.exp()).all()
    assert (high >= log_psi.exp()).all()
    assert (low >= 0).all()
    assert (high <= 1).all()
