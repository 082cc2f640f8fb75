import numpy as np
import pytest
import torch

from psi_engine.errors import InputError
from psi_engine.ops.exact import quantise
from psi_engine.ops.naming import factored_measure, measure

KINDS = ("gap", "contrast", "margin")
TABLE = torch.tensor([[[0.5, 0.5, 0.125], [0.25, 0.125, 0.75]]])


def by_hand(table, weights, kind):
    """One channel, one cluster at a time: table (k, texts)."""
    there = [j for j in range(len(table)) if weights[j] > 0]
    names = {j: int(np.argmax(table[j])) for j in there}
    total = 0.0
    for j in there:
        others = [l for l in there if l != j]
        if kind == "gap":
            rival = sorted(table[j])[-2]
        elif not others:
            return 0.0
        elif kind == "contrast":
            rival = max(table[l][names[j]] for l in others)
        else:
            rival = max(table[j][names[l]] for l in others)
        total += weights[j] * (table[j][names[j]] - rival)
    return total / sum(weights) if there else 0.0


def test_values_of_a_small_table():
    """Cluster 0 is named by text 0, the first of two equals, cluster 1 by text 2."""
    even = torch.ones(1, 2, dtype=torch.float64)
    assert float(measure(TABLE, even, "gap")) == (0 + 0.5) / 2
    assert float(measure(TABLE, even, "contrast")) == (0.25 + 0.625) / 2
    assert float(measure(TABLE, even, "margin")) == (0.375 + 0.5) / 2
    thrice = torch.tensor([[1.0, 3.0]], dtype=torch.float64)
    assert float(measure(TABLE, thrice, "margin")) == (0.375 + 3 * 0.5) / 4


@pytest.mark.parametrize("kind", KINDS)
def test_clusters_that_do_not_exist_count_nowhere(kind):
    one = torch.tensor([[0.0, 2.0]], dtype=torch.float64)
    assert float(measure(TABLE, one, kind)) == (0.5 if kind == "gap" else 0.0)
    assert float(measure(TABLE, 0 * one, kind)) == 0.0


def problem(seed=0, n=7, k=4, r=4, sets=5, texts=203):
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        x = torch.randn(*shape, generator=generator, dtype=torch.float64)
        return quantise(x / x.norm(dim=-1, keepdim=True))

    weights = torch.randint(0, 4, (n, k), generator=generator).to(torch.float64)
    weights[0] = 0
    weights[1] = torch.tensor([0.0, 2.0, 0.0, 0.0])
    bank = draw(sets, texts, r).mT.contiguous()
    bank[:, :, 100:110] = bank[:, :, 50:60]  # ties
    return draw(n, k, r), bank, weights


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("backend", ["torch", "numba"])
def test_factored_measure_equals_a_loop(kind, backend):
    factors, bank, weights = problem()
    got = factored_measure(factors, bank, weights, kind, backend=backend)
    for n in range(len(factors)):
        for s in range(len(bank)):
            table = (factors[n].double() @ bank[s].double()).numpy()
            want = by_hand(table, weights[n].tolist(), kind)
            assert float(got[n, s]) == pytest.approx(want, abs=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_backends_and_memory_give_the_same_bits(kind):
    arguments = (*problem(1, n=40), kind)
    numba = factored_measure(*arguments, backend="numba")
    assert torch.equal(numba, factored_measure(*arguments, backend="torch"))
    assert torch.equal(numba, factored_measure(*arguments, backend="torch", memory=1))


def test_nothing_in_nothing_out():
    factors, bank, weights = problem()
    for backend in ("torch", "numba"):
        got = factored_measure(factors[:0], bank, weights[:0], "margin", backend=backend)
        assert got.shape == (0, 5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f, b, w: (f[:, :, :2], b, w), "factors and bank do not fit"),
        (lambda f, b, w: (f, b, w[:3]), "weights do not fit"),
        (lambda f, b, w: (f, b[:, :, :1], w), "texts to choose from"),
    ],
)
def test_bad_shapes_are_refused(change, message):
    with pytest.raises(InputError, match=message):
        factored_measure(*change(*problem()), "gap")
