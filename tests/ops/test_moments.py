"""Sums that no order changes, against exact rational arithmetic."""

from __future__ import annotations

import random
from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from psi_engine.ops.moments import (
    LIMBS,
    add_moments,
    batch_moments,
    carry,
    from_limbs,
    summarise,
    to_limbs,
)

# What sums of float32 values and of their squares can be, down to 2^-100.
NUMBERS = st.floats(-1e77, 1e77).map(lambda x: 0.0 if abs(x) < 2.0**-100 else x)


@given(st.lists(NUMBERS, min_size=1, max_size=30), st.randoms())
def test_sums_are_exact_in_any_order(numbers: list[float], rng: random.Random) -> None:
    limbs = to_limbs(torch.tensor(numbers, dtype=torch.float64))
    assert limbs.shape == (LIMBS, len(numbers))
    rng.shuffle(numbers)
    again = to_limbs(torch.tensor(numbers, dtype=torch.float64))
    assert torch.equal(limbs.sum(1), again.sum(1))
    # The integers hold the exact sum, however much cancels (numbers are multiples of 2^-152).
    held = sum(
        Fraction(limb) * Fraction(2) ** (40 * (6 - i))
        for i, limb in enumerate(limbs.sum(1).tolist())
    )
    assert held == sum(map(Fraction, numbers))


@given(st.lists(NUMBERS, min_size=1, max_size=8))
def test_carrying_changes_no_sum(numbers: list[float]) -> None:
    parts = [batch_moments(torch.zeros(1, 1, 1))[0]._replace(
        total=to_limbs(torch.tensor([x], dtype=torch.float64))
    ) for x in numbers]  # fmt: skip
    plain = carried = parts[0]
    for part in parts[1:]:
        plain = add_moments(plain, part)
        carried = carry(add_moments(part, carried))
    assert torch.equal(from_limbs(plain.total), from_limbs(carried.total))
    assert from_limbs(plain.total).item() == pytest.approx(
        float(sum(map(Fraction, numbers))), rel=1e-15, abs=2.0**-150
    )


@pytest.mark.parametrize("sign", [1, -1])
def test_more_images_than_an_integer_holds_unaided(sign: int) -> None:
    """2^26 images: one doubled 26 times, with carries in between; without, the sum wraps."""
    x = torch.full((1, 1, 1), sign * (2.0 - 2.0**-23), dtype=torch.float32)
    one = carried = plain = batch_moments(x)[0]
    for _ in range(26):
        carried = carry(add_moments(carried, carried))
        plain = add_moments(plain, plain)
    assert from_limbs(carried.total).item() == 2.0**26 * from_limbs(one.total).item()
    assert summarise(carried).mean.item() == x.item()
    assert from_limbs(plain.squares).item() != from_limbs(carried.squares).item()


@given(NUMBERS)
def test_one_number_comes_back(number: float) -> None:
    x = torch.tensor([number], dtype=torch.float64)
    assert torch.equal(from_limbs(to_limbs(x)), x)


def test_float32_extremes_do_not_overflow() -> None:
    largest = torch.finfo(torch.float32).max
    stats = summarise(batch_moments(torch.full((2, 1, 3), largest))[0])
    assert stats.mean.item() == pytest.approx(largest, rel=1e-15)
    assert stats.variance.item() <= 1e-15 * largest**2


def test_merging_is_exact_and_commutes() -> None:
    x = torch.randn(30, 4, 5, generator=torch.Generator().manual_seed(0)) * 1e3
    whole = batch_moments(x)[0]
    parts = [batch_moments(part)[0] for part in x.split([1, 7, 22])]
    left = add_moments(add_moments(parts[0], parts[1]), parts[2])
    right = add_moments(parts[2], add_moments(parts[1], parts[0]))
    for a, b, c in zip(whole, left, right, strict=True):
        assert torch.equal(a, b)
        assert torch.equal(a, c)


def test_nothing_finite_is_nan() -> None:
    x = torch.full((2, 1, 3), torch.nan)
    moments, finite = batch_moments(x)
    assert finite is not None
    assert not finite.any()
    stats = summarise(moments)
    assert stats.nonfinite.tolist() == [6]
    assert stats.count.tolist() == [0]
    for part in (stats.minimum, stats.maximum, stats.mean, stats.variance, stats.sparsity):
        assert part.isnan().all()
