from __future__ import annotations

import pytest
import torch

from psi_engine.ops.blocks import best_partition, partitions
from psi_engine.ops.clustering import cluster
from tests.reference import clustering as reference

BACKENDS = ("torch", "numba")


@pytest.mark.parametrize(
    ("blocks", "k", "count"), [(7, 1, 1), (7, 2, 63), (7, 3, 301), (7, 4, 350), (7, 5, 140)]
)
def test_there_are_as_many_partitions_as_stirling_counts(blocks: int, k: int, count: int) -> None:
    table = partitions(blocks, k)
    assert len({frozenset(parts) for parts in table}) == len(table) == count
    assert all(sum(parts) == (1 << blocks) - 1 and min(parts) > 0 for parts in table)


def test_the_best_partition_of_blocks_is_the_best_of_all() -> None:
    generator = torch.Generator().manual_seed(0)
    z = torch.nn.functional.normalize(
        torch.randn(10, 7, 3, generator=generator, dtype=torch.float64), dim=-1
    )
    labels = best_partition(z @ z.mT, torch.ones(10, 7, dtype=torch.bool), 3)
    for rows, found in zip(z.numpy(), labels.numpy(), strict=True):
        best = reference.best_partition(rows, 3)
        assert reference.objective(rows, found) == pytest.approx(best, abs=1e-9)


def test_empty_blocks_are_no_clusters_and_change_no_tie() -> None:
    """Five blocks all alike: every partition into three sets of fixed sizes ties."""
    gram = torch.eye(5, dtype=torch.float64)
    padded = torch.zeros(7, 7, dtype=torch.float64)
    padded[:5, :5] = gram
    plain = best_partition(gram, torch.ones(5, dtype=torch.bool), 3)
    found = best_partition(padded, torch.arange(7) < 5, 3)
    assert plain.unique().tolist() == [0, 1, 2]
    assert found[:5].tolist() == plain.tolist()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("k", [2, 3, 4, 5])
def test_few_patches_are_partitioned_in_the_best_of_all_ways(backend: str, k: int) -> None:
    z = torch.nn.functional.normalize(
        torch.randn(8, 7, 4, generator=torch.Generator().manual_seed(k), dtype=torch.float64),
        dim=-1,
    )
    found = cluster(z @ z.mT, torch.arange(8), k, restarts=1, backend=backend)
    for rows, objective in zip(z.numpy(), found.objective.tolist(), strict=True):
        assert objective == pytest.approx(reference.best_partition(rows, k), abs=1e-8)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("blobs", [5, 7])
def test_tight_groups_are_united_in_the_best_of_all_ways(backend: str, blobs: int) -> None:
    """Moves of single points cannot: each member alone would lose by leaving its group."""
    generator = torch.Generator().manual_seed(blobs)
    centres = torch.nn.functional.normalize(
        torch.randn(6, blobs, 16, generator=generator, dtype=torch.float64), dim=-1
    )
    noise = 1e-5 * torch.randn(6, 6 * blobs, 16, generator=generator, dtype=torch.float64)
    z = torch.nn.functional.normalize(centres.repeat(1, 6, 1) + noise, dim=-1)
    found = cluster(z @ z.mT, torch.arange(6), 3, restarts=1, backend=backend)
    for rows, objective in zip(centres.numpy(), found.objective.tolist(), strict=True):
        assert objective == pytest.approx(6 * reference.best_partition(rows, 3), rel=1e-5)
