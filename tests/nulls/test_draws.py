import numpy as np
import pytest
import torch
from scipy import stats

from psi_engine.nulls import draws
from psi_engine.nulls.draws import (
    chi,
    normals,
    rotations_about_ones,
    wishart_rows,
    without_replacement,
)
from psi_engine.ops.random import hash_keys

KEYS = hash_keys(torch.arange(4000), 11)


@pytest.mark.parametrize(("population", "size"), [(10, 10), (12, 5), (40, 5), (5000, 50), (21, 5)])
def test_subsets_are_distinct_in_range_and_uniform(population, size):
    got = without_replacement(KEYS, population, size)
    assert got.shape == (4000, size)
    ordered = got.sort(1).values
    assert (ordered[:, 1:] > ordered[:, :-1]).all()
    assert int(ordered.min()) >= 0
    assert int(ordered.max()) < population
    bins = min(population, 20)
    counts = torch.bincount(got.flatten() * bins // population, minlength=bins)
    edges = np.ceil(np.arange(bins + 1) * population / bins)
    share = np.diff(edges) / population
    assert stats.chisquare(counts.numpy(), share * got.numel()).pvalue > 1e-4
    first = torch.bincount(got[:, 0] * bins // population, minlength=bins)  # ordered draws, too
    assert stats.chisquare(first.numpy(), share * 4000).pvalue > 1e-4


def test_a_longer_look_ahead_changes_nothing(monkeypatch):
    """The subset is the first distinct values of an endless sequence, whatever was generated."""
    together = without_replacement(KEYS, 30, 7)
    alone = torch.cat([without_replacement(key, 30, 7) for key in KEYS[:200].split(1)])
    assert torch.equal(together[:200], alone)


def test_too_many_are_refused():
    with pytest.raises(ValueError, match="cannot draw 5 of 4"):
        without_replacement(KEYS[:1], 4, 5)


def test_normals_and_chi_have_their_laws():
    assert stats.kstest(normals(KEYS, 3).numpy(), "norm").pvalue > 1e-3
    for freedom in (1, 5, 200):
        lengths = chi(torch.tensor(freedom), KEYS, freedom)
        assert stats.kstest(lengths.numpy(), "chi", args=(freedom,)).pvalue > 1e-3


def test_threads_change_no_bit(monkeypatch):
    place = torch.arange(29)
    alone = normals(KEYS[:, None], place), chi(place + 1, KEYS[:, None], place)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    calls = []
    pool = draws.ThreadPoolExecutor
    monkeypatch.setattr(
        draws, "ThreadPoolExecutor", lambda *x, **y: calls.append(x) or pool(*x, **y)
    )
    assert torch.equal(normals(KEYS[:, None], place), alone[0])
    assert torch.equal(chi(place + 1, KEYS[:, None], place), alone[1])
    assert calls == [(3,), (3,)]
    assert normals(7, 1).shape == ()
    assert normals(KEYS[:0], 1).shape == (0,)


def test_rotations_are_orthogonal_keep_ones_and_are_haar():
    q = rotations_about_ones(KEYS[:1500], 6)
    eye = torch.eye(6, dtype=torch.float64)
    assert torch.allclose(q @ q.mT, eye.expand_as(q), atol=1e-12)
    ones = torch.ones(6, dtype=torch.float64)
    assert torch.allclose(q @ ones, ones.expand(1500, 6), atol=1e-12)
    # a fixed unit vector orthogonal to 1 goes to a uniform direction of the 5-dimensional rest:
    # its first coordinate in an orthonormal basis has the law of a beta variate
    v = (torch.tensor([1.0, -1, 0, 0, 0, 0], dtype=torch.float64)) / 2**0.5
    w = (torch.tensor([1.0, 1, -2, 0, 0, 0], dtype=torch.float64)) / 6**0.5
    coordinate = (q @ v) @ w
    assert stats.kstest((coordinate.numpy() + 1) / 2, "beta", args=(2, 2)).pvalue > 1e-3
    assert abs(float((torch.linalg.det(q) > 0).double().mean()) - 0.5) < 0.06


@pytest.mark.parametrize(("n", "dim"), [(5, 8), (8, 5)])
def test_wishart_rows_have_the_cosines_of_random_directions(n, dim):
    rows = wishart_rows(KEYS, n, dim)
    rows = rows / rows.norm(dim=-1, keepdim=True)
    for i, j in ((0, 1), (n - 2, n - 1), (0, n - 1)):
        cosine = (rows[:, i] * rows[:, j]).sum(-1).numpy()
        law = ((dim - 1) / 2, (dim - 1) / 2)
        assert stats.kstest((cosine + 1) / 2, "beta", args=law).pvalue > 1e-3
    triple = (
        (rows[:, 0] * rows[:, 1]).sum(-1)
        * (rows[:, 1] * rows[:, 2]).sum(-1)
        * (rows[:, 0] * rows[:, 2]).sum(-1)
    )
    assert abs(float(triple.mean()) - 1 / dim**2) < 5 * float(triple.std()) / 4000**0.5
