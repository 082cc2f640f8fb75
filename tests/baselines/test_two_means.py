import pytest
import torch
from sklearn.cluster import KMeans

from psi_engine.baselines import two_means
from psi_engine.baselines.rows import at_once
from psi_engine.baselines.two_means import centres, split_in_two


def inertia(z, labels):
    parts = [z[labels == j] for j in (0, 1)]
    return float(sum(((part - part.mean(0)) ** 2).sum() for part in parts if len(part)))


def test_the_clusters_are_a_fixed_point_and_no_worse_than_one_start_of_scikit_learn():
    generator = torch.Generator().manual_seed(5)
    z = torch.randn(40, 30, 12, generator=generator, dtype=torch.float64)
    pairs = split_in_two(z, seed=0)
    size, means = centres(pairs)
    assert (size.sum(1) == 30).all()
    nearest = torch.cdist(pairs.x, means).argmin(-1)
    assert torch.equal(nearest, pairs.assignments)
    ours = [inertia(x, labels) for x, labels in zip(z, pairs.assignments, strict=True)]
    theirs = [KMeans(2, n_init=1, random_state=0).fit(x.numpy()).inertia_ for x in z]
    assert sum(a <= b * (1 + 1e-9) for a, b in zip(ours, theirs, strict=True)) >= 38


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_neither_the_batch_nor_the_order_of_channels_changes_a_bit(dtype):
    generator = torch.Generator().manual_seed(6)
    z = torch.randn(23, 37, 19, generator=generator, dtype=dtype) + 1
    whole = split_in_two(z, seed=0)
    for some in ([3], [22, 0, 7], list(range(22, -1, -1))):
        part = split_in_two(z[some], seed=0)
        for got, want in zip(part, whole, strict=True):
            assert torch.equal(got, want[some])


def test_products_are_exact_in_any_order(monkeypatch):
    """Squared distances are multiples of 2⁻⁴⁸ below 4: no sum of products was ever rounded."""
    seen = []
    split = two_means._two_means
    monkeypatch.setattr(two_means, "_two_means", lambda x, seed: seen.append(x) or split(x, seed))
    generator = torch.Generator().manual_seed(9)
    split_in_two(torch.randn(3, 40, 300, generator=generator, dtype=torch.float64) + 5, seed=0)
    assert torch.equal(seen[0] * 2.0**48, (seen[0] * 2.0**48).round())
    assert 1 < float(seen[0].max()) <= 4 + 1e-6


def test_large_channels_are_taken_few_at_a_time():
    assert at_once(50, 512) == 64
    assert at_once(1000, 512) == 4
    assert at_once(4000, 512) == 1
