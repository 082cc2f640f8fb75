"""Sets as ranges, held against Python's sets."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from psi_engine.ranges import Ranges

sets = st.sets(st.integers(0, 24), max_size=20)


def ranges(numbers: set[int]) -> Ranges:
    return Ranges.of((n, n + 1) for n in numbers)


@given(sets, sets, st.integers(0, 26), st.integers(0, 26))
def test_they_are_sets(a: set[int], b: set[int], i: int, j: int) -> None:
    x, y = ranges(a), ranges(b)
    assert x.indices().tolist() == sorted(a)
    assert (x | y) == ranges(a | b)
    assert (x - y) == ranges(a - b)
    assert (x & y) == ranges(a & b)
    assert len(x) == len(a)
    assert x.below(i) == ranges({n for n in a if n < i})
    assert x.slice(slice(i, j)) == ranges(set(sorted(a)[i:j]))


@pytest.mark.parametrize(
    ("parts", "said"),
    [([], "none"), ([(3, 4)], "3"), ([(5, 9), (0, 2), (9, 11)], "0–1, 5–10")],
)
def test_they_are_said_in_short(parts: list[tuple[int, int]], said: str) -> None:
    assert str(Ranges.of(parts)) == said
