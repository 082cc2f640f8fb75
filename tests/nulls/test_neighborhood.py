import pytest
import torch

from psi_engine.nulls.neighborhood import compare_at, neighbour_sets
from psi_engine.ops.exact import unit_rows
from tests.nulls.call import make_call, normal
from tests.reference import nulls as reference


def test_sets_are_distinct_neighbours_of_every_width():
    centres = 3 * normal(0, 20, 8)
    pool = centres.repeat_interleave(30, 0) + normal(1, 600, 8)
    call = make_call(pool, replicates=50)
    sets = neighbour_sets(12, call)
    assert sets.shape == (200, 12)
    ordered = sets.sort(1).values
    assert (ordered[:, 1:] > ordered[:, :-1]).all()
    units = unit_rows(pool).rows.double()[sets]
    clarity = (units @ units.mT).mean((1, 2))
    tight = unit_rows(pool).rows.double()
    assert float(clarity.max()) > 0.75  # as tight as one kind
    assert float(clarity.min()) < float((tight @ tight.T).mean()) + 0.15  # as loose as the pool


def test_a_large_pool_is_searched_in_part(monkeypatch):
    from psi_engine.nulls import neighborhood

    monkeypatch.setattr(neighborhood, "MOST_ROWS", 50)
    call = make_call(normal(2, 300, 6), replicates=40)
    sets = neighbour_sets(10, call)
    assert len(torch.unique(sets)) <= 50
    assert int(sets.max()) >= 50
    assert "among 50 of the pool's 300 rows" in call.notes[0]


def test_the_mean_is_a_local_line():
    call = make_call(replicates=120)
    where = torch.rand(120, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    table = torch.sin(4 * where) + 0.1 * normal(4, 120)
    at = torch.tensor([0.2, 0.5, float(where.min()), float(where.max())], dtype=torch.float64)
    got = compare_at(at, torch.zeros(4, dtype=torch.float64), where, table, call)
    for i, x in enumerate(at.tolist()):
        want = reference.local_line(x, where.tolist(), table.tolist(), 40)
        assert float(got.mean[i]) == pytest.approx(want, abs=1e-9)
    assert ((got.std > 0.06) & (got.std < 0.16)).all()


def test_off_the_range_the_end_counts_and_it_is_said():
    call = make_call(replicates=120)
    where = torch.linspace(0.2, 0.6, 120, dtype=torch.float64)
    table = where + 0.01 * normal(5, 120)
    at = torch.tensor([0.0, 0.2, 0.6, 0.9], dtype=torch.float64)
    got = compare_at(at, at, where, table, call)
    assert torch.equal(got.mean[0], got.mean[1])
    assert torch.equal(got.mean[2], got.mean[3])
    ((text, count),) = call.tallies.items()
    assert count == 2
    assert "0.200 to 0.600" in text


def test_equal_mean_cosines_do_not_break_the_fit():
    where = torch.full((60,), 0.5, dtype=torch.float64)
    table = normal(6, 60)
    got = compare_at(where[:1], table[:1], where, table, make_call())
    assert float(got.mean) == pytest.approx(float(table.mean()), abs=1e-12)


def test_rounding_decides_no_p_where_the_table_has_no_spread():
    """Every set scores 0: a channel that scores 0 but for rounding is like all of them."""
    where = torch.rand(120, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    table = 1e-9 * normal(8, 120)
    observed = torch.tensor([5e-8, 0.0, -5e-8, 0.1], dtype=torch.float64)
    got = compare_at(where[:4], observed, where, table, make_call())
    assert got.p[:3].tolist() == [1.0, 1.0, 1.0]
    assert float(got.p[3]) == 1 / 121
