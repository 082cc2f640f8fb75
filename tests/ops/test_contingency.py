from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from psi_engine.errors import InputError
from psi_engine.ops.contingency import normalized_mutual_information, permutation_nmi
from tests.reference import nmi as reference

BACKENDS = ("torch", "numba")


def labelings(n: int, patches: int, most: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-1, most, (n, patches), generator=generator)


@pytest.mark.parametrize(("patches", "labels"), [(4, 2), (50, 8), (300, 40)])
def test_agrees_with_the_reference_and_scikit_learn(patches: int, labels: int) -> None:
    from sklearn.metrics import normalized_mutual_info_score

    a, b = labelings(6, patches, 4), labelings(6, patches, labels, seed=1)
    got = normalized_mutual_information(a, b)
    for i in range(6):
        want = reference.normalized_mutual_information(a[i].tolist(), b[i].tolist())
        assert got[i].item() == pytest.approx(want, abs=1e-9)
        known = (a[i] >= 0) & (b[i] >= 0)
        if len(a[i, known].unique()) > 1 and len(b[i, known].unique()) > 1:
            theirs = normalized_mutual_info_score(b[i, known].numpy(), a[i, known].numpy())
            assert got[i].item() == pytest.approx(theirs, abs=1e-9)


@pytest.mark.parametrize(
    ("a", "b", "want"),
    [
        pytest.param([0, 0, 1, 1], [5, 5, 9, 9], 1.0, id="equal"),
        pytest.param([0, 0, 1, 1], [3, 4, 3, 4], 0.0, id="independent"),
        pytest.param([0, 0, 0, 0], [0, 1, 2, 3], 0.0, id="one-cluster"),
        pytest.param([0, 1, 0, 1], [7, 7, 7, 7], 0.0, id="one-label"),
        pytest.param([0, 0, 0, 0], [7, 7, 7, 7], 0.0, id="neither-has-entropy"),
        pytest.param([0, 1, 2, 3], [-1, -1, -1, -1], 0.0, id="no-label-known"),
        pytest.param([0, 1, -1, 1], [-1, 5, 2, 6], 0.0, id="two-known"),
        pytest.param([0, 0, 1, 1, 1], [2**40, 2**40, 3, 3, -1], 1.0, id="huge-label"),
    ],
)
def test_exact_values(a: list[int], b: list[int], want: float) -> None:
    assert normalized_mutual_information(torch.tensor(a), torch.tensor(b)).item() == want


def test_broadcasts_over_leading_axes() -> None:
    a, b = labelings(3, 20, 3)[:, None], labelings(5, 20, 4)
    got = normalized_mutual_information(a, b)
    assert got.shape == (3, 5)
    assert got[1, 4] == normalized_mutual_information(a[1, 0], b[4])


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(-1, 3), st.integers(-1, 6)), min_size=1, max_size=30))
def test_order_and_names_change_no_bit(pairs: list[tuple[int, int]]) -> None:
    a, b = (torch.tensor(x) for x in zip(*pairs, strict=True))
    got = normalized_mutual_information(a, b)
    assert 0 <= got <= 1
    assert torch.equal(got, normalized_mutual_information(b, a))
    renamed = torch.where(b >= 0, 100 - 7 * b, -1)
    assert torch.equal(got, normalized_mutual_information(a.flip(0), renamed.flip(0)))


def test_chunks_change_nothing() -> None:
    a, b = labelings(9, 20, 3), labelings(9, 20, 4, seed=1)
    assert torch.equal(
        normalized_mutual_information(a, b), normalized_mutual_information(a, b, memory=1)
    )


def test_permutations_torch_and_numba_give_the_same_bits() -> None:
    a, b = labelings(7, 25, 4), labelings(7, 25, 9, seed=1)
    b[3] = -1
    a[4] = 0
    x, y = (permutation_nmi(a, b, torch.arange(7), 40, backend=backend) for backend in BACKENDS)
    assert torch.equal(x, y)
    assert x[3].eq(0).all()
    assert x[4].eq(0).all()
    assert not x[5].eq(0).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_permutations_follow_the_exact_law(backend: str) -> None:
    a, b = [0, 0, 0, 1, 1, 2], [0, 0, 1, 1, 2, 2]
    law = np.array(reference.all_permutations(a, b))
    draws = permutation_nmi(
        torch.tensor([a]), torch.tensor([b]), torch.tensor([3]), 20_000, backend=backend
    )[0].numpy()
    values = np.unique(law.round(9))
    assert set(draws.round(9)) == set(values)
    for value in values:
        share = (law.round(9) == value).mean()
        error = np.sqrt(share * (1 - share) / 20_000)
        assert abs((draws.round(9) == value).mean() - share) < 4 * error


@pytest.mark.parametrize("backend", BACKENDS)
def test_unknown_labels_stay_out_of_the_shuffle(backend: str) -> None:
    """Patches that are known keep their marginals: NMI only takes values of the known table."""
    a, b = torch.tensor([[0, 0, 1, 1, 5, 9]]), torch.tensor([[4, 4, 6, 6, -1, -1]])
    draws = permutation_nmi(a, b, torch.tensor([1]), 200, backend=backend)
    assert set(draws.unique().tolist()) == {0.0, 1.0}


@pytest.mark.parametrize("backend", BACKENDS)
def test_permutations_depend_on_key_and_replicate_alone(backend: str) -> None:
    a, b, keys = labelings(6, 30, 3), labelings(6, 30, 5, seed=1), torch.arange(6) + 10
    whole = permutation_nmi(a, b, keys, 50, backend=backend)
    assert torch.equal(whole.flip(0), permutation_nmi(a.flip(0), b.flip(0), keys.flip(0), 50))
    assert torch.equal(whole[:, :20], permutation_nmi(a, b, keys, 20, backend=backend, memory=1))
    assert not torch.equal(whole, permutation_nmi(a, b, keys + 1, 50, backend=backend))


def test_expected_information_is_scikit_learns() -> None:
    from scipy.stats import entropy
    from sklearn.metrics.cluster import contingency_matrix, expected_mutual_information

    a, b = labelings(1, 50, 3).clamp(min=0), labelings(1, 50, 6, seed=1).clamp(min=0)
    draws = permutation_nmi(a, b, torch.tensor([0]), 20_000)[0].numpy()
    table = contingency_matrix(a[0].numpy(), b[0].numpy(), sparse=True)
    scale = (entropy(a[0].bincount()) + entropy(b[0].bincount())) / 2
    want = expected_mutual_information(table, 50) / scale
    assert abs(draws.mean() - want) < 4 * draws.std() / np.sqrt(20_000)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": torch.zeros(3, 4)}, "labels must be integers"),
        ({"labels": torch.zeros(3, 5, dtype=torch.int64)}, "do not fit each other"),
        ({"labels": torch.zeros(1, 4, dtype=torch.int64)}, r"both be \(channels, patches\)"),
        ({"keys": torch.arange(2)}, "keys do not fit"),
        ({"keys": torch.zeros(3)}, "keys do not fit"),
        ({"replicates": 0}, "replicates is too small"),
    ],
)
def test_bad_input_is_refused(change: dict, message: str) -> None:
    labels = torch.zeros(3, 4, dtype=torch.int64)
    options = {"labels": labels, "keys": torch.arange(3), "replicates": 5, **change}
    with pytest.raises(InputError, match=message):
        permutation_nmi(labels, **options)


@pytest.mark.gpu
def test_cuda_gives_the_bits_of_the_cpu() -> None:
    a, b, keys = labelings(20, 50, 5), labelings(20, 50, 30, seed=1), torch.arange(20)
    want = permutation_nmi(a, b, keys, 100, backend="torch")
    assert torch.equal(permutation_nmi(a.cuda(), b.cuda(), keys.cuda(), 100).cpu(), want)
    assert torch.equal(
        normalized_mutual_information(a.cuda(), b.cuda()).cpu(), normalized_mutual_information(a, b)
    )
