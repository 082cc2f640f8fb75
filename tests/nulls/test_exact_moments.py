import numpy as np
import pytest
import torch
from sklearn.metrics.cluster import expected_mutual_information

from psi_engine.nulls.exact_moments import exact_moments, nmi_moments
from psi_engine.ops.contingency import permutation_nmi
from tests.nulls.call import make_batch, make_call, normal
from tests.reference import nulls as reference


@pytest.mark.parametrize(
    ("assignments", "labels"),
    [
        ([0, 0, 0, 1, 1, 2, 2], [0, 0, 1, 1, 1, 2, 3]),
        ([0, 1, 2, 3, 0, 1, 2], [5, 5, 5, 5, 5, 5, 8]),
        ([0, 0, 0, 1, 1, 1], [0, 0, 1, 1, 2, 2]),
        ([0, 0, 0, 0, 0, 1], [0, 0, 0, 1, 1, 1]),
        ([0, 0, 1, 1, 1, 2, 2], [4, 4, 4, 4, 4, 4, 4]),
        ([0, 0, 1, 1, 1, 2, 2], [0, 1, 2, 3, 4, 5, 6]),
        ([0, 1, 2, 3, 4, 5, 6], [0, 0, 1, 1, 1, 2, 2]),
        ([0, 1, 2, 3, 4, 5], [5, 4, 3, 2, 1, 0]),
        ([0, 1], [3, 4]),
    ],
    ids=lambda x: "".join(map(str, x)),
)
def test_moments_equal_all_permutations(assignments, labels):
    scores = reference.all_permutation_scores(assignments, labels, reference.nmi)
    mean, std = nmi_moments(torch.tensor([assignments]), torch.tensor([labels]))
    assert float(mean) == pytest.approx(np.mean(scores), abs=1e-10)
    assert float(std) == pytest.approx(np.std(scores), abs=1e-9)


@pytest.mark.parametrize(
    ("assignments", "labels"),
    [
        ([0, 0, -1, 1, 1, 2, 2, -1], [0, 0, 1, 1, 1, 2, -1, -1]),
        ([0, 0, 0, 1, 1, 1, 1, 1], [-1, 0, 1, 2, -1, 3, 4, 5]),
        ([0, 0, 0, 1, 1, 1, 1, 1], [-1, -1, -1, 2, 3, 3, 2, 2]),
    ],
    ids=["unknown-in-both", "all-distinct", "one-cluster-known"],
)
def test_moments_of_ragged_sets_equal_all_permutations_of_what_is_known(assignments, labels):
    known = [(a, b) for a, b in zip(assignments, labels, strict=True) if a >= 0 and b >= 0]
    scores = reference.all_permutation_scores(*map(list, zip(*known, strict=True)), reference.nmi)
    mean, std = nmi_moments(torch.tensor([assignments]), torch.tensor([labels]))
    assert float(mean) == pytest.approx(np.mean(scores), abs=1e-10)
    assert float(std) == pytest.approx(np.std(scores), abs=1e-9)


def test_mean_equals_expected_mutual_information():
    generator = torch.Generator().manual_seed(0)
    a = torch.randint(0, 4, (3, 50), generator=generator)
    b = torch.randint(0, 12, (3, 50), generator=generator)
    mean, _ = nmi_moments(a, b)
    for c in range(3):
        table = np.zeros((4, 12), dtype=np.int64)
        np.add.at(table, (a[c].numpy(), b[c].numpy()), 1)

        def entropy(counts):
            p = counts[counts > 0] / 50
            return -(p * np.log(p)).sum()

        both = entropy(table.sum(0)) + entropy(table.sum(1))
        want = 2 * expected_mutual_information(table, 50) / both
        assert float(mean[c]) == pytest.approx(want, abs=1e-10)


def test_moments_equal_many_permutations_within_their_error():
    generator = torch.Generator().manual_seed(1)
    a = torch.randint(0, 5, (4, 50), generator=generator)
    b = torch.randint(0, 9, (4, 50), generator=generator) ** 2 // 7
    b[3, ::4] = -1
    mean, std = nmi_moments(a, b)
    draws = permutation_nmi(a, b, torch.arange(4), 100_000)
    error = draws.std(1) / 100_000**0.5
    assert ((draws.mean(1) - mean).abs() < 4 * error).all()
    fourth = ((draws - draws.mean(1, keepdim=True)) ** 4).mean(1)
    of_variance = ((fourth - draws.var(1) ** 2) / 100_000).sqrt()
    assert ((draws.var(1) - std**2).abs() < 4 * of_variance).all()


def test_no_entropy_means_no_spread():
    a = torch.tensor([[0, 0, 1, 1], [0, 0, 0, 0], [0, 1, 0, 1], [0, 1, 0, 1]])
    b = torch.tensor([[3, 3, 3, 3], [0, 1, 2, 3], [-1, -1, -1, -1], [2, -1, -1, -1]])
    mean, std = nmi_moments(a, b)
    assert not mean.any()
    assert not std.any()


def test_company_changes_no_bit():
    generator = torch.Generator().manual_seed(2)
    a = torch.randint(0, 5, (12, 40), generator=generator)
    b = torch.randint(0, 15, (12, 40), generator=generator)
    whole = torch.stack(nmi_moments(a, b))
    alone = torch.cat([torch.stack(nmi_moments(a[c : c + 1], b[c : c + 1])) for c in range(12)], 1)
    assert torch.equal(whole, alone)
    assert torch.equal(whole.flip(1), torch.stack(nmi_moments(a.flip(0), b.flip(0))))


def test_the_null_takes_its_p_from_permutations():
    call = make_call(replicates=49)
    labels = torch.arange(3 * 14).reshape(3, 14) % 3
    batch = make_batch(normal(3, 3, 14, 6), call, labels)
    got = exact_moments(batch, call)
    assert torch.equal(got.mean, nmi_moments(batch.assignments, labels)[0])
    draws = permutation_nmi(
        batch.assignments, labels, call.keys("null.q.permutation", batch.ids), 49
    )
    assert got.p.tolist() == pytest.approx(
        ((1 + (draws >= batch.q[:, None] - 1e-9).sum(1)) / 50).tolist()
    )
