import math

import pytest
import torch

from psi_engine.statistics import (
    NullSummary,
    adjust,
    around,
    by_group,
    calibrate,
    intersection_union,
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
        assert [float(x[c]) for x in got] == pytest.approx(want, abs=1e-14)


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


def test_log_hat_does_not_underflow():
    x = torch.tensor([-2000.0], dtype=torch.float64)
    got = calibrate(x, torch.zeros(1, dtype=torch.float64), torch.ones(1, dtype=torch.float64))
    assert float(got.hat) == 0.0
    assert float(got.log_hat) == pytest.approx(-2000.0, rel=1e-5)


@pytest.mark.parametrize("method", ["bh", "by"])
def test_adjusted_p_equals_a_loop_and_skips_nan(method):
    p = [0.01, 0.04, 0.03, 0.005, 0.9, 0.03, 1.0, 0.0005]
    want = reference.adjusted(p, method)
    with_gap = torch.tensor([*p[:3], math.nan, *p[3:]], dtype=torch.float64)
    got = adjust(with_gap, method)
    assert math.isnan(got[3])
    assert [x for x in got.tolist() if not math.isnan(x)] == pytest.approx(want, rel=1e-12)


def test_bh_equals_scipy():
    from scipy.stats import false_discovery_control

    p = torch.rand(50, generator=torch.Generator().manual_seed(1), dtype=torch.float64) ** 2
    for method in ("bh", "by"):
        want = false_discovery_control(p.numpy(), method=method)
        assert adjust(p, method).numpy() == pytest.approx(want, rel=1e-12)


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
        return NullSummary(value, value + 0.1, value + 0.2)

    assert by_group(groups, compare).mean.tolist() == [30.0, 21.0, 32.0, 53.0]


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
