from __future__ import annotations

import pytest
import torch

from psi_engine.errors import DeviceError, InputError
from psi_engine.nulls.draws import rotations_about_ones
from psi_engine.ops.clustering import cluster
from psi_engine.ops.exact import gram
from psi_engine.ops.exact import unit_rows as unit_rows_on_grid
from psi_engine.ops.random import hash_keys
from psi_engine.ops.rotated_grams import PRODUCT_GRID, ROTATION_GRID, on_grid, rotated_grams
from psi_engine.ops.separability import pooled_separability, rotated_separability, separability
from psi_engine.ops.silhouette import silhouette

BACKENDS = ("torch", "numba")


def unit_rows(n: int, patches: int, modes: int = 1, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    centre = torch.randn(n, modes, 32, generator=generator, dtype=torch.float64)
    z = 0.4 * torch.randn(n, patches, 32, generator=generator, dtype=torch.float64)
    return torch.nn.functional.normalize(
        z + centre[:, torch.arange(patches) % modes] * (modes > 1), dim=-1
    )


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("modes", [2, 3, 4, 5])
def test_finds_the_planted_number_of_clusters(backend: str, modes: int) -> None:
    z = unit_rows(5, 40, modes)
    found = separability(z @ z.mT, torch.arange(5), backend=backend)
    assert found.n_clusters.tolist() == [modes] * 5
    assert (found.assignments == torch.arange(40) % modes).all()
    assert (found.score > 0.5).all()


@pytest.mark.parametrize("solver", ["hartigan", "lloyd"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_is_the_best_of_cluster_and_silhouette(backend: str, solver: str) -> None:
    z, keys = unit_rows(10, 25), torch.arange(10)
    mask = torch.rand(10, 25, generator=torch.Generator().manual_seed(1)) > 0.3
    grams = z @ z.mT
    found = separability(grams, keys, k_max=4, mask=mask, solver=solver, backend=backend)
    means, labels = [], []
    for k in (2, 3, 4):
        labels.append(
            cluster(grams, keys, k, mask=mask, solver=solver, backend="torch").assignments
        )
        means.append(silhouette(grams, labels[-1], backend="torch").nanmean(1))
    best = torch.stack(means).argmax(0)
    assert found.n_clusters.tolist() == (best + 2).tolist()
    assert torch.equal(found.assignments, torch.stack(labels)[best, torch.arange(10)])
    want = torch.stack(means).amax(0).clamp(min=0)
    torch.testing.assert_close(found.score, want, rtol=0, atol=1e-9)


@pytest.mark.parametrize("solver", ["hartigan", "lloyd"])
def test_torch_and_numba_give_the_same_bits(solver: str) -> None:
    z = unit_rows(20, 30).float()
    mask = torch.arange(30) < torch.randint(3, 31, (20, 1), generator=torch.Generator())
    a, b = (
        separability(z @ z.mT, torch.arange(20), mask=mask, solver=solver, backend=backend)
        for backend in BACKENDS
    )
    for x, y in zip(a, b, strict=True):
        torch.testing.assert_close(x, y, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("backend", BACKENDS)
def test_k_max_is_clipped_for_each_problem(backend: str) -> None:
    z = unit_rows(5, 8, seed=2)
    mask = torch.arange(8) < torch.tensor([[8], [5], [4], [3], [2]])
    found = separability(z @ z.mT, torch.arange(5), k_max=7, mask=mask, backend=backend)
    assert (found.n_clusters < mask.sum(1)).all()
    assert found.n_clusters[3] == 2
    assert torch.equal(found.assignments >= 0, mask & (torch.arange(5) < 4)[:, None])
    assert found.n_clusters[4] == 0  # two patches allow no k
    assert found.score[4].isnan()
    assert not found.score[:4].isnan().any()


@pytest.mark.parametrize("backend", BACKENDS)
def test_ties_take_the_smallest_k(backend: str) -> None:
    grams = torch.stack([torch.ones(9, 9), torch.eye(9)])  # coinciding; all equally far
    found = separability(grams, torch.arange(2), backend=backend)
    assert found.score.tolist() == [0.0, 0.0]
    assert found.n_clusters.tolist() == [2, 2]


@pytest.mark.parametrize("backend", BACKENDS)
def test_threads_batch_and_chunks_change_nothing(backend: str) -> None:
    z, keys = unit_rows(30, 12).float(), torch.arange(30)
    grams = z @ z.mT
    whole = separability(grams, keys, backend=backend)
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    try:
        again = separability(grams.flip(0), keys.flip(0), backend=backend, memory=1 << 17)
    finally:
        torch.set_num_threads(before)
    for x, y in zip(whole, again, strict=True):
        assert torch.equal(x, y.flip(0))


def test_no_problems_give_no_results() -> None:
    for backend in BACKENDS:
        found = separability(
            torch.empty(0, 5, 5), torch.empty(0, dtype=torch.int64), backend=backend
        )
        assert [tuple(x.shape) for x in found] == [(0,), (0,), (0, 5)]


@pytest.mark.parametrize("backend", BACKENDS)
def test_entries_that_are_no_cosines_are_refused(backend: str) -> None:
    grams = torch.full((3, 5, 5), torch.nan)
    with pytest.raises(InputError, match="cosines of unit rows"):
        separability(grams, torch.arange(3), backend=backend)


@pytest.mark.parametrize(("k_min", "k_max"), [(1, 5), (4, 3)])
def test_bad_ranges_are_refused(k_min: int, k_max: int) -> None:
    with pytest.raises(InputError, match="range of k"):
        separability(torch.eye(5)[None], torch.arange(1), k_min=k_min, k_max=k_max)


@pytest.mark.gpu
@pytest.mark.parametrize("backend", ["torch", "cuda"])
def test_cuda_gives_the_bits_of_the_cpu(backend: str) -> None:
    z = unit_rows(50, 50).float()
    grams, keys = z @ z.mT, torch.arange(50)
    mask = torch.arange(50) < torch.randint(6, 51, (50, 1), generator=torch.Generator())
    cpu = separability(grams, keys, mask=mask, backend="numba")
    gpu = separability(grams.cuda(), keys.cuda(), mask=mask.cuda(), backend=backend)
    for x, y in zip(cpu, gpu, strict=True):
        assert torch.equal(x, y.cpu())


def rotated_sets(channels: int, patches: int, m: int):
    rows = unit_rows(channels, patches)
    products = rows @ rows.mT
    norm = products.flatten(1).norm(dim=1)
    scale = torch.ldexp(torch.ones_like(norm), torch.frexp(norm).exponent)
    rotations = rotations_about_ones(hash_keys(torch.arange(m), 5), patches)
    keys = hash_keys(torch.arange(channels)[:, None], torch.arange(m))
    return (
        on_grid(rotations, ROTATION_GRID),
        on_grid(products / scale[:, None, None], PRODUCT_GRID),
        scale,
        0.0,
        keys,
    )


@pytest.mark.parametrize("backend", ["torch", "numba"])
def test_rotated_sets_are_scored_one_by_one(backend: str) -> None:
    """Whatever is put together: the Gram matrices of each channel and rotation, scored alone."""
    rotations, products, scale, shift, keys = rotated_sets(3, 12, 4)
    got = rotated_separability(
        rotations, products, scale, shift, keys, backend=backend, memory=1 << 16
    )
    for c in range(3):
        for r in range(4):
            grams = rotated_grams(
                rotations[r : r + 1], products[c : c + 1], scale[c : c + 1], shift
            )
            assert got[c, r] == separability(grams[0], keys[c, r : r + 1]).score[0]


def test_keys_of_rotated_sets_must_fit() -> None:
    *sets, keys = rotated_sets(3, 12, 4)
    with pytest.raises(InputError, match="keys do not fit products and rotations"):
        rotated_separability(*sets, keys[:, :3])
    with pytest.raises(InputError, match="not all float64"):
        rotated_separability(sets[0], sets[1].float(), *sets[2:], keys)
    assert rotated_separability(sets[0][:0], *sets[1:], keys[:, :0]).shape == (3, 0)


@pytest.mark.gpu
def test_cuda_scores_rotated_sets_with_the_bits_of_the_cpu() -> None:
    sets = rotated_sets(20, 50, 30)
    want = rotated_separability(*sets, backend="numba")
    there = [x.cuda() if isinstance(x, torch.Tensor) else x for x in sets]
    assert torch.equal(rotated_separability(*there, backend="cuda").cpu(), want)


def pooled_sets(n: int, patches: int, dim: int = 24):
    random = torch.Generator().manual_seed(4)
    rows = unit_rows_on_grid(torch.randn(70, dim, generator=random)).rows
    indices = torch.stack([torch.randperm(70, generator=random)[:patches] for _ in range(n)])
    return rows, indices, hash_keys(torch.arange(n), 3)


@pytest.mark.parametrize("solver", ["hartigan", "lloyd"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_sets_of_a_pool_are_scored_one_by_one(backend: str, solver: str) -> None:
    rows, indices, keys = pooled_sets(7, 12)
    options = {"backend": backend, "solver": solver}
    got = pooled_separability(rows, indices, keys, memory=1 << 15, **options)
    for i in range(7):
        z = rows[indices[i]].double()
        grams = gram(rows[indices[i]][None])
        assert got.score[i] == separability(grams, keys[i : i + 1], **options).score[0]
        apart = (z @ z.mT)[~torch.eye(12, dtype=torch.bool)]
        assert float(got.clarity[i]) == pytest.approx(float(apart.mean()), abs=1e-7)
    assert [len(x) for x in pooled_separability(rows, indices[:0], keys[:0], **options)] == [0, 0]


def test_sets_that_do_not_fit_the_pool_are_refused() -> None:
    rows, indices, keys = pooled_sets(3, 6)
    with pytest.raises(InputError, match="rows must be"):
        pooled_separability(rows.double(), indices, keys)
    with pytest.raises(InputError, match="indices must be"):
        pooled_separability(rows, indices.int(), keys)
    with pytest.raises(InputError, match="keys do not fit indices"):
        pooled_separability(rows, indices, keys[:2])
    for wrong in (-1, 70):
        indices[1, 2] = wrong
        with pytest.raises(InputError, match="point outside the rows"):
            pooled_separability(rows, indices, keys)


@pytest.mark.gpu
def test_cuda_scores_sets_of_a_pool_with_the_bits_of_the_cpu() -> None:
    sets = pooled_sets(200, 50, dim=512)
    want = pooled_separability(*sets, backend="numba")
    got = pooled_separability(*(x.cuda() for x in sets), backend="cuda")
    for x, y in zip(want, got, strict=True):
        assert torch.equal(x, y.cpu())


@pytest.mark.gpu
def test_a_named_backend_is_never_replaced() -> None:
    grams = torch.eye(8, device="cuda")[None]
    with pytest.raises(DeviceError, match="lloyd"):
        separability(grams, torch.arange(1).cuda(), solver="lloyd", backend="cuda")
    separability(grams, torch.arange(1).cuda(), solver="lloyd", backend="auto")
