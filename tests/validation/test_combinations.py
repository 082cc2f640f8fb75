import numpy as np
import pytest
from scipy import stats

from psi_engine.validation.combinations import (
    COMBINATIONS,
    Evidence,
    fisher,
    logistic,
    minimum,
    psi,
    soft_minimum,
    stouffer,
)

Z = {"s": np.array([3.0, -1.0, 40.0]), "d": np.array([1.0, 2.0, -1e4])}
P = {name: stats.norm.sf(z) for name, z in Z.items()}


def evidence(z, p=None, kinds=None, tuning=None):
    n = len(next(iter(z.values())))
    return Evidence(
        {}, z, p or z, np.repeat("mono", n) if kinds is None else kinds,
        np.ones(n, bool) if tuning is None else tuning,
    )  # fmt: skip


def test_each_formula():
    found = evidence(Z, {name: np.maximum(p, 1e-300) for name, p in P.items()})
    want = [-np.log1p(np.exp(-a)) - np.log1p(np.exp(-b)) for a, b in ((3, 1), (-1, 2))]
    assert psi(found)[:2] == pytest.approx(want)
    assert psi(found)[2] == -1e4
    assert stouffer(found)[:2] == pytest.approx([4 / 2**0.5, 1 / 2**0.5])
    assert minimum(found).tolist() == [1.0, -1.0, -1e4]
    assert soft_minimum(found)[0] == pytest.approx(-3 * np.log(np.exp(-1) + np.exp(-1 / 3)))
    assert soft_minimum(found)[2] == -1e4
    for unit in (0, 1):
        want = stats.combine_pvalues([P["s"][unit], P["d"][unit]]).statistic
        assert fisher(found)[unit] == pytest.approx(want)


@pytest.mark.parametrize("name", COMBINATIONS)
def test_a_unit_without_a_component_has_no_combination(name):
    z = {"s": np.array([1.0, np.nan, 2.0, 0.0]), "d": np.array([0.5, 1.0, 1.5, 0.2])}
    kinds = np.array(["mono", "mono", "poly2-unrelated", "noise"])
    got = COMBINATIONS[name](evidence(z, {k: np.full(4, 0.5) + 0 * v for k, v in z.items()}, kinds))
    assert np.isnan(got).tolist() == [False, True, False, False]


def grouped(n=200):
    rng = np.random.default_rng(0)
    kinds = np.repeat(["poly2-unrelated", "mono", "noise", "poly2-related", "noise-projection"], n)
    s = np.repeat([4.0, 0, 4, 9, 9], n) + rng.normal(size=5 * n)
    d = np.repeat([4.0, 4, 0, 9, 9], n) + rng.normal(size=5 * n)
    return {"s": s, "d": d}, kinds, np.tile([True, False], 5 * n // 2)


def test_the_logistic_finds_what_separates_and_needs_both_components():
    z, kinds, tuning = grouped()
    got = logistic(evidence(z, None, kinds, tuning))
    poly = kinds == "poly2-unrelated"
    for low in ("mono", "noise"):
        pairs = got[poly & ~tuning][:, None] > got[(kinds == low) & ~tuning]
        assert pairs.mean() > 0.98


def test_the_logistic_sees_no_held_out_kind_and_no_projection():
    z, kinds, tuning = grouped()
    first = logistic(evidence(z, None, kinds, tuning))
    swapped = kinds.copy()
    swapped[~tuning] = np.random.default_rng(1).permutation(swapped[~tuning])
    assert np.array_equal(first, logistic(evidence(z, None, swapped, tuning)))
    moved = {name: np.where(kinds == "noise-projection", -50, value) for name, value in z.items()}
    same = kinds != "noise-projection"
    assert np.array_equal(first[same], logistic(evidence(moved, None, kinds, tuning))[same])


def test_the_logistic_has_nothing_to_say_where_a_side_is_missing():
    z, kinds, tuning = grouped()
    assert np.isnan(logistic(evidence(z, None, np.repeat("mono", len(kinds)), tuning))).all()
