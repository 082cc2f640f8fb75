import pytest
import torch

from psi_engine.nulls.neighborhood import _subsets, compare_at, neighbour_sets
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


def test_tied_sets_all_count():
    """Half of the sets share three mean cosines, more at one than a window holds."""
    where = torch.rand(120, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    where[:48], where[48:55], where[55:60] = 0.5, 0.1, 0.95
    table = torch.sin(4 * where) + 0.1 * normal(10, 120)
    at = torch.tensor([0.1, 0.3, 0.47, 0.5, 0.8, 0.95], dtype=torch.float64).clamp(
        where.min(), where.max()
    )
    got = compare_at(at, at, where, table, make_call(replicates=120))
    for i, x in enumerate(at.tolist()):
        want = reference.local_line(x, where.tolist(), table.tolist(), 40)
        assert float(got.mean[i]) == pytest.approx(want, abs=1e-9)


def test_memory_and_company_change_no_bit():
    where = torch.rand(300, generator=torch.Generator().manual_seed(11), dtype=torch.float64)
    table = torch.sin(4 * where) + 0.1 * normal(12, 300)
    at = where[:50]
    want = compare_at(at, table[:50], where, table, make_call())
    for part in torch.arange(50).split(7):
        tight = make_call(memory=1 << 12)
        got = compare_at(at[part], table[part], where, table, tight)
        for mine, all_of_them in zip(got, want, strict=True):
            assert torch.equal(mine, all_of_them[part])
    pool = normal(13, 90, 6)
    sets = neighbour_sets(8, make_call(pool))
    assert torch.equal(neighbour_sets(8, make_call(pool, memory=1 << 14)), sets)


def test_every_subset_is_as_likely():
    draws = 30_000
    sizes = torch.tensor([3, 5]).repeat_interleave(draws)
    got = _subsets(torch.arange(2 * draws) * 7919, sizes, 3, 6).sort(1).values
    assert (got[:draws] == torch.arange(3)).all()
    kinds, counts = torch.unique(got[draws:], dim=0, return_counts=True)
    assert len(kinds) == 10
    expected = draws / 10
    chi_square = float(((counts - expected) ** 2 / expected).sum())
    assert chi_square < 27.9  # the 0.999 quantile at 9 degrees of freedom


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
