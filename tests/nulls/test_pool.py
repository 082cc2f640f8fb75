import pytest
import torch
from sklearn.metrics import silhouette_score

from psi_engine.nulls.patch_sets import clarity_table, distinctness_table, separability_table
from psi_engine.nulls.pool import clarity_p, pool_d, pool_s, random_sets
from psi_engine.nulls.rotation import rotation
from psi_engine.ops.clustering import cluster
from psi_engine.ops.exact import gram, unit_rows
from tests.nulls.call import make_batch, make_call, normal
from tests.reference import distinctness as reference


def test_tables_are_scores_of_the_drawn_patches():
    pool, texts = normal(0, 90, 10), normal(1, 15, 10)
    call = make_call(pool, texts, replicates=8, k_max=3)
    sets = random_sets(12, call)
    assert len(set(map(tuple, sets.tolist()))) == 8
    scores, clarity = (
        separability_table(random_sets, 12, call),
        clarity_table(random_sets, 12, call),
    )
    by_k = distinctness_table(random_sets, 12, 3, call)
    keys = call.keys("null.sets.solve", 12, torch.arange(8))
    centre = unit_rows(pool).rows.double().mean(0).numpy()
    for r in range(8):
        z = pool[sets[r]]
        grams = gram(unit_rows(z).rows[None])
        best = 0.0
        for k in (2, 3):
            a = cluster(grams, keys[r : r + 1], k, restarts=20).assignments[0]
            best = max(best, silhouette_score(z.numpy(), a.numpy(), metric="cosine"))
        assert float(scores[r]) == pytest.approx(best, abs=1e-6)
        assert float(by_k[r]) == pytest.approx(
            reference.margin(z.numpy(), a.numpy(), texts.numpy(), centre), abs=1e-6
        )
        unit = z / z.norm(dim=1, keepdim=True)
        want = ((unit @ unit.T).sum() - 12) / (12 * 11)
        assert float(clarity[r]) == pytest.approx(float(want), abs=1e-6)


def test_each_channel_meets_the_table_of_its_own_k():
    pool, texts = normal(2, 90, 10), normal(3, 15, 10)
    call = make_call(pool, texts, replicates=30)
    batch = make_batch(normal(4, 8, 12, 10), call)
    got = pool_d(batch, call)
    assert len(set(batch.n_clusters.tolist())) > 1
    for c, k in enumerate(batch.n_clusters.tolist()):
        table = distinctness_table(random_sets, 12, k, call)
        assert float(got.mean[c]) == pytest.approx(float(table.mean()), abs=1e-12)
        reached = int((table >= batch.d[c]).sum())
        assert float(got.p[c]) == pytest.approx((1 + reached) / 31)


def test_a_table_is_drawn_once_per_call(monkeypatch):
    call = make_call(normal(5, 90, 10), replicates=10)
    batch = make_batch(normal(6, 3, 12, 10), call)
    pool_s(batch, call)
    counted = []
    for name in ("separability", "pooled_separability"):
        scored = getattr(type(call), name)
        monkeypatch.setattr(
            type(call), name, lambda *x, scored=scored: counted.append(1) or scored(*x)
        )
    pool_s(batch, call)
    rotation(batch, call)
    rotation(batch, call)
    assert len(counted) == 1


def test_sets_of_one_size_are_kept_at_a_time():
    """A call may hold channels of any number of patches: what they leave must not pile up."""
    call = make_call(normal(12, 90, 10), replicates=10)
    kept = {}
    for n in (8, 9, 10, 9):
        kept.setdefault(n, []).append(separability_table(random_sets, n, call))
        clarity_table(random_sets, n, call)

    def held(values):
        tensors = [x for x in values if isinstance(x, torch.Tensor)]
        return sum(x.numel() for x in tensors) + sum(
            held(x) for x in values if isinstance(x, tuple | list)
        )

    assert kept[9][0] is kept[9][1]  # tables, 10 numbers each, stay
    tables = held(call._once.values())
    assert tables == 2 * 3 * 10
    assert held(call._latest.values()) == 10 * 10  # positions of n = 10
    clarity = clarity_table(random_sets, 9, make_call(normal(12, 90, 10), replicates=10))
    assert torch.equal(clarity_table(random_sets, 9, call), clarity)  # alone or with S: the same


def test_memory_changes_no_bit():
    pool, texts = normal(7, 90, 10), normal(8, 15, 10)
    results = []
    for memory in (1 << 15, 1 << 30):
        call = make_call(pool, texts, memory=memory, replicates=20)
        batch = make_batch(normal(9, 3, 12, 10), make_call(pool, texts))
        results.append([*pool_s(batch, call), *pool_d(batch, call), clarity_p(batch, call)])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_coherent_channels_have_small_clarity_p():
    call = make_call(normal(10, 300, 10), replicates=99)
    z = normal(11, 2, 12, 10)
    z[0] += 3
    p = clarity_p(make_batch(z, call), call)
    assert float(p[0]) == 0.01
    assert float(p[1]) > 0.05
