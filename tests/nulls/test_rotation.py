import numpy as np
import pytest
import torch
from scipy import stats

from psi_engine.nulls.draws import wishart_rows
from psi_engine.nulls.rotation import rotation
from psi_engine.ops.exact import gram, unit_rows
from psi_engine.ops.random import hash_keys
from tests.nulls.call import make_batch, make_call, normal
from tests.reference import nulls as reference


def spy_on_scores(call, monkeypatch):
    seen = []
    scored = type(call).separability

    def spy(self, grams, keys):
        found = scored(self, grams, keys)
        seen.append((grams, keys, found.score))
        return found

    monkeypatch.setattr(type(call), "separability", spy)
    return seen


@pytest.mark.parametrize(("n", "dim"), [(9, 14), (14, 9)])
def test_null_grams_equal_rotated_features(n, dim, monkeypatch):
    """The drawn rows stand for vectors of R^dim in any frame: turn them, and nothing changes."""
    call = make_call(replicates=6)
    batch = make_batch(normal(0, 1, n, dim), call)
    seen = spy_on_scores(call, monkeypatch)
    rotation(batch, call)
    ((grams, keys, _),) = seen
    rows = wishart_rows(keys, n, dim).numpy()
    for r in range(6):
        whole = np.zeros((n, dim))
        whole[:, : rows.shape[-1]] = rows[r]
        turned = whole @ reference.haar(dim, np.random.default_rng(r))
        turned = turned / np.linalg.norm(turned, axis=1, keepdims=True)
        assert np.abs(grams[r].numpy() - turned @ turned.T).max() < 1e-6


def test_the_draws_have_the_law_of_patches_rotated_one_by_one(monkeypatch):
    """Every patch of a very uneven set gets its own Haar rotation; S and the cosines agree."""
    n, dim, replicates = 10, 5, 1500
    call = make_call(replicates=replicates, k_max=3)
    z = normal(1, n, dim) * torch.tensor([9.0, 3.0, 1.0, 0.3, 0.1], dtype=torch.float64) + 4
    batch = make_batch(z[None], call)
    seen = spy_on_scores(call, monkeypatch)
    rotation(batch, call)
    rng = np.random.default_rng(2)
    sets = [reference.rotated_one_by_one(z.numpy(), rng) for _ in range(replicates)]
    literal = gram(unit_rows(torch.from_numpy(np.array(sets))).rows)
    call.separability(literal, hash_keys(torch.arange(replicates), 3))
    (ours, _, drawn), (theirs, _, scores) = seen
    assert stats.ks_2samp(drawn.numpy(), scores.numpy()).pvalue > 1e-3
    for i, j in ((0, 1), (0, n - 1), (n - 2, n - 1)):
        assert stats.ks_2samp(ours[:, i, j].numpy(), theirs[:, i, j].numpy()).pvalue > 1e-3
