"""The nearest rows of a set, exactly and almost."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from psi_engine.ops.exact import unit_rows
from psi_engine.retrieval import nearest as module
from psi_engine.retrieval.nearest import Nearest
from tests.reference import retrieval as reference

DIM = 16


def rows_of(count: int, seed: int = 0, dim: int = DIM, noise: float = 0.7) -> torch.Tensor:
    """Unit rows around forty directions, as concepts make them."""
    rng = np.random.default_rng(seed)
    places = np.random.default_rng(99).normal(size=(40, dim))
    near = places[rng.integers(0, 40, count)] + noise * rng.normal(size=(count, dim))
    return unit_rows(torch.from_numpy(near)).rows


def test_the_nearest_are_those_of_the_definition() -> None:
    rows, queries = rows_of(300), rows_of(4, seed=1)
    held = Nearest.build([rows[:100], rows[100:]], DIM)
    assert torch.equal(held.rows, rows)
    found, near = held.nearest(queries, 7)
    assert found.shape == near.shape == (4, 7)
    for query, ids, values in zip(queries, found, near, strict=True):
        expected, cosines = reference.nearest(rows.tolist(), query.tolist(), 7)
        assert ids.tolist() == expected
        np.testing.assert_allclose(values, cosines, atol=1e-7, rtol=0)


def test_only_what_is_allowed_is_found() -> None:
    rows, queries = rows_of(60), rows_of(2, seed=1)
    allowed = np.random.default_rng(3).random(60) < 0.1
    held = Nearest.build([rows], DIM)
    count = int(allowed.sum())
    found, near = held.nearest(queries, count + 3, allowed)
    for query, ids, values in zip(queries, found, near, strict=True):
        expected, _ = reference.nearest(rows.tolist(), query.tolist(), count, allowed)
        assert ids[:count].tolist() == expected
        assert (ids[count:] == -1).all()
        assert np.isneginf(values[count:]).all()


def test_equal_rows_come_in_their_order_and_queries_do_not_change_each_other() -> None:
    one = rows_of(1)
    held = Nearest.build([rows_of(50, seed=2), one.expand(8, -1)], DIM)
    found, _ = held.nearest(one, 3)
    assert found.tolist() == [[50, 51, 52]]
    queries = rows_of(40, seed=5)
    together = held.nearest(queries, 5)
    apart = [held.nearest(query[None], 5) for query in queries]
    np.testing.assert_array_equal(together[0], np.concatenate([ids for ids, _ in apart]))
    np.testing.assert_array_equal(together[1], np.concatenate([values for _, values in apart]))


def test_an_empty_set_holds_nothing() -> None:
    found, near = Nearest.build([], DIM).nearest(rows_of(2), 3)
    assert found.shape == near.shape == (2, 0)


def test_a_large_set_finds_nearly_all_and_keeps_exact_similarities(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "APPROXIMATE_FROM", 4000)
    rows, queries = rows_of(8000, 0, 64, noise=1.5), rows_of(50, 1, 64, noise=1.5)
    large = Nearest.build([rows], 64)
    large.write(tmp_path / "index.faiss")
    monkeypatch.setattr(module, "APPROXIMATE_FROM", 1 << 30)
    small = Nearest.build([rows], 64)
    exact, _ = small.nearest(queries, 10)
    monkeypatch.setattr(module, "APPROXIMATE_FROM", 4000)
    monkeypatch.setattr(module, "PROBES", 16)  # of 178 parts
    for held in (large, Nearest.read(tmp_path / "index.faiss")):
        assert torch.equal(held.rows, rows)
        found, near = held.nearest(queries, 10)
        recall = np.mean([len({*a} & {*b}) / 10 for a, b in zip(found, exact, strict=True)])
        assert 0.9 <= recall < 1  # not the exact search by another way
        expected = (queries.double() @ rows.double().T).gather(1, torch.from_numpy(found))
        np.testing.assert_allclose(near, expected, atol=1e-7, rtol=0)
        few = np.arange(8000) % 7 == 0
        np.testing.assert_array_equal(
            held.nearest(queries, 10, few)[0], small.nearest(queries, 10, few)[0]
        )
        np.testing.assert_array_equal(
            held.nearest(queries, 3000)[0], small.nearest(queries, 3000)[0]
        )
        many = np.arange(8000) % 7 > 0
        assert not (held.nearest(queries, 3, many)[0] % 7 == 0).any()
