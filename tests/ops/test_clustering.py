from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from psi_engine.errors import InputError
from psi_engine.ops.clustering import cluster
from tests.reference import clustering as reference

BACKENDS = ("torch", "numba")
SOLVERS = ("hartigan", "lloyd")


def unit_rows(
    n: int, patches: int, dim: int = 16, seed: int = 0, modes: int = 1, spread: float = 1.0
) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    centre = torch.randn(n, modes, dim, generator=generator, dtype=torch.float64)
    z = torch.randn(n, patches, dim, generator=generator, dtype=torch.float64)
    z = spread * z + 2 * centre[:, torch.arange(patches) % modes]
    return torch.nn.functional.normalize(z, dim=-1)


def some_mask(n: int, patches: int, least: int) -> torch.Tensor:
    mask = torch.rand(n, patches, generator=torch.Generator().manual_seed(5)) > 0.3
    mask[:, -least:] = True
    return mask


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("k", [1, 2, 5])
def test_torch_and_numba_give_the_same_bits(solver: str, masked: bool, k: int) -> None:
    z = unit_rows(12, 31)
    mask = some_mask(12, 31, 5) if masked else None
    a, b = (
        cluster(z @ z.mT, torch.arange(12), k, mask=mask, solver=solver, backend=backend)
        for backend in BACKENDS
    )
    assert torch.equal(a.assignments, b.assignments)
    assert torch.equal(a.objective, b.objective)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("solver", SOLVERS)
def test_objective_and_labels_agree_with_the_reference(backend: str, solver: str) -> None:
    z, mask = unit_rows(6, 20, seed=2), some_mask(6, 20, 4)
    found = cluster(z @ z.mT, torch.arange(6), 3, mask=mask, solver=solver, backend=backend)
    for i in range(6):
        labels = found.assignments[i].numpy()
        assert (labels >= 0).tolist() == mask[i].tolist()
        assert set(labels[labels >= 0].tolist()) == {0, 1, 2}
        assert (labels == reference.first_member_order(labels)).all()
        want = reference.objective(z[i].numpy(), labels)
        assert found.objective[i].item() == pytest.approx(want, abs=1e-8)


@pytest.mark.parametrize("backend", BACKENDS)
def test_hartigan_leaves_no_improving_move(backend: str) -> None:
    z = unit_rows(5, 14, dim=6, seed=3)
    found = cluster(z @ z.mT, torch.arange(5), 3, restarts=1, backend=backend)
    for i in range(5):
        labels = found.assignments[i].numpy()
        assert not reference.improving_move(z[i].numpy(), labels, tolerance=1e-7)


@pytest.mark.parametrize("k", [2, 3])
def test_finds_the_best_partition_of_small_sets(k: int) -> None:
    z = unit_rows(12, 8, dim=5, seed=4)
    found = cluster(z @ z.mT, torch.arange(12), k, restarts=10)
    best = np.array([reference.best_partition(x.numpy(), k) for x in z])
    short = best - found.objective.numpy()
    assert short.max() < 0.02
    assert (short < 1e-8).mean() >= 0.9


@pytest.mark.parametrize("k", [2, 3, 4, 5])
@pytest.mark.parametrize(("modes", "spread"), [(1, 1.0), (3, 1.0), (7, 0.05)])
def test_at_least_as_good_as_scikit_learn(modes: int, spread: float, k: int) -> None:
    """One mode, three that overlap, and seven tight groups, more than there are clusters."""
    from sklearn.cluster import KMeans

    z = unit_rows(40, 50, dim=64, seed=6, modes=modes, spread=spread)
    ours = cluster(z @ z.mT, torch.arange(40), k, restarts=5).objective
    wins = 0
    for i, rows in enumerate(z.numpy()):
        labels = KMeans(k, n_init=10, random_state=i).fit(rows).labels_
        wins += ours[i].item() >= reference.objective(rows, labels) * (1 - 1e-6)
    assert wins >= 0.95 * 40


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_batch_order_and_chunks_change_nothing(solver: str, backend: str) -> None:
    z, keys = unit_rows(9, 23, seed=7).float(), torch.arange(9) * 7919
    grams = z @ z.mT
    whole = cluster(grams, keys, 4, solver=solver, backend=backend)
    order = torch.randperm(9, generator=torch.Generator().manual_seed(0))
    shuffled = cluster(grams[order], keys[order], 4, solver=solver, backend=backend)
    assert torch.equal(whole.assignments[order], shuffled.assignments)
    assert torch.equal(whole.objective[order], shuffled.objective)
    small = cluster(grams, keys, 4, solver=solver, backend=backend, memory=1)
    assert torch.equal(whole.assignments, small.assignments)
    alone = cluster(grams[5:6], keys[5:6], 4, solver=solver, backend=backend)
    assert torch.equal(whole.assignments[5:6], alone.assignments)
    assert torch.equal(whole.objective[5:6], alone.objective)


@pytest.mark.parametrize("backend", BACKENDS)
def test_padding_changes_nothing(backend: str) -> None:
    z, keys = unit_rows(4, 20, seed=8), torch.arange(4)
    plain = cluster(z @ z.mT, keys, 3, backend=backend)
    grams = torch.full((4, 26, 26), torch.nan, dtype=torch.float64)
    grams[:, :20, :20] = z @ z.mT
    mask = (torch.arange(26) < 20).expand(4, 26)
    padded = cluster(grams, keys, 3, mask=mask, backend=backend)
    assert torch.equal(plain.assignments, padded.assignments[:, :20])
    assert padded.assignments[:, 20:].eq(-1).all()
    assert torch.equal(plain.objective, padded.objective)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 6))
def test_rotating_the_space_keeps_the_objective(seed: int, k: int) -> None:
    z = unit_rows(1, 15, dim=8, seed=seed)
    turn, _ = torch.linalg.qr(torch.randn(8, 8, dtype=torch.float64, generator=_generator(seed)))
    turned = z @ turn
    a = cluster(z @ z.mT, torch.tensor([seed]), k)
    b = cluster(turned @ turned.mT, torch.tensor([seed]), k)
    assert a.objective.item() == pytest.approx(b.objective.item(), rel=0.01)


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("distinct", [1, 2, 3])
def test_duplicates_still_give_k_clusters(backend: str, solver: str, distinct: int) -> None:
    rows = torch.eye(4, dtype=torch.float64)[torch.arange(12) % distinct][None]
    found = cluster(rows @ rows.mT, torch.tensor([1]), 5, solver=solver, backend=backend)
    assert found.assignments.unique().tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("solver", SOLVERS)
def test_as_many_clusters_as_patches(backend: str, solver: str) -> None:
    z = unit_rows(2, 6)
    found = cluster(z @ z.mT, torch.arange(2), 6, solver=solver, backend=backend)
    assert found.assignments.tolist() == [[0, 1, 2, 3, 4, 5]] * 2
    assert found.objective.tolist() == pytest.approx([6.0, 6.0], abs=1e-8)


@pytest.mark.parametrize("backend", BACKENDS)
def test_lloyd_refills_an_emptied_cluster(backend: str) -> None:
    """Many tight sets, many clusters: without refilling some would come back empty."""
    z = unit_rows(60, 12, dim=2, seed=9)
    found = cluster(z @ z.mT, torch.arange(60), 8, solver="lloyd", restarts=1, backend=backend)
    for labels in found.assignments:
        assert labels.unique().tolist() == list(range(8))


@pytest.mark.parametrize("backend", BACKENDS)
def test_different_keys_draw_differently(backend: str) -> None:
    z = unit_rows(1, 40, dim=30).expand(20, -1, -1)
    found = cluster(z @ z.mT, torch.arange(20), 5, restarts=1, backend=backend)
    assert len(found.objective.unique()) > 1


@pytest.mark.parametrize("backend", BACKENDS)
def test_more_restarts_never_lose(backend: str) -> None:
    z = unit_rows(20, 30, dim=20)
    one, five = (
        cluster(z @ z.mT, torch.arange(20), 4, restarts=r, backend=backend).objective
        for r in (1, 5)
    )
    assert (five >= one).all()
    assert (five > one).any()


def test_no_problems_give_no_results() -> None:
    for backend in BACKENDS:
        found = cluster(torch.empty(0, 5, 5), torch.empty(0, dtype=torch.int64), 2, backend=backend)
        assert found.assignments.shape == (0, 5)
        assert found.objective.shape == (0,)


def test_inputs_are_not_modified() -> None:
    for backend in BACKENDS:
        z = unit_rows(3, 10)
        grams = z @ z.mT
        before = grams.clone()
        cluster(grams, torch.arange(3), 3, backend=backend)
        assert torch.equal(grams, before)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), 5.0])
def test_entries_that_are_no_cosines_are_refused(backend: str, value: float) -> None:
    z = unit_rows(2, 6)
    grams = z @ z.mT
    grams[1, 2, 3] = value
    with pytest.raises(InputError, match="cosines of unit rows"):
        cluster(grams, torch.arange(2), 2, backend=backend)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"grams": torch.zeros(2, 5, 4)}, r"grams must be \(n, patches, patches\)"),
        ({"grams": torch.zeros(5, 5)}, r"grams must be \(n, patches, patches\)"),
        ({"grams": torch.zeros(2, 5, 5, dtype=torch.int64)}, "floating"),
        ({"keys": torch.arange(3)}, "keys do not fit grams"),
        ({"keys": torch.zeros(2)}, "keys do not fit grams"),
        ({"mask": torch.ones(2, 4, dtype=torch.bool)}, "mask does not fit grams"),
        ({"mask": torch.ones(2, 5)}, "mask does not fit grams"),
        ({"k": 0}, "k is too small"),
        ({"k": 6}, "k exceeds the valid patches"),
        ({"k": 3, "mask": torch.arange(5).expand(2, 5) < 2}, "k exceeds the valid patches"),
        ({"restarts": 0}, "restarts is too small"),
        ({"solver": "ward"}, "unknown solver"),
        ({"backend": "jax"}, "unknown backend"),
    ],
)
def test_bad_input_is_refused(change: dict, message: str) -> None:
    options = {"grams": torch.eye(5).expand(2, 5, 5), "keys": torch.arange(2), "k": 2, **change}
    with pytest.raises(InputError, match=message):
        cluster(options.pop("grams"), options.pop("keys"), options.pop("k"), **options)


@pytest.mark.gpu
@pytest.mark.parametrize("solver", SOLVERS)
def test_cuda_gives_the_bits_of_the_cpu(solver: str) -> None:
    z, mask = unit_rows(30, 50), some_mask(30, 50, 5)
    grams, keys = (z @ z.mT), torch.arange(30)
    cpu = cluster(grams, keys, 4, mask=mask, solver=solver, backend="torch")
    gpu = cluster(grams.cuda(), keys.cuda(), 4, mask=mask.cuda(), solver=solver, backend="torch")
    assert torch.equal(cpu.assignments, gpu.assignments.cpu())
    assert torch.equal(cpu.objective, gpu.objective.cpu())
