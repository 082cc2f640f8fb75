import pytest
import torch

from psi_engine.errors import DeviceError, InputError
from psi_engine.ops.exact import quantise
from psi_engine.ops.naming import factored_measure, measure
from tests.reference.distinctness import of_table

KINDS = ("gap", "contrast", "margin")
TABLE = torch.tensor([[[0.5, 0.5, 0.125], [0.25, 0.125, 0.75]]])


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


def problem(seed=0, n=7):
    """Channels without a cluster and with one, and texts that repeat others."""
    factors, bank, weights = random_problem(n, 4, 4, 5, 203, seed)
    weights[0] = 0
    weights[1] = torch.tensor([0.0, 2.0, 0.0, 0.0])
    bank[:, :, 100:110] = bank[:, :, 50:60]  # ties
    return factors, bank, weights


def random_problem(n, k, r, sets, texts, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        x = torch.randn(*shape, generator=generator, dtype=torch.float64)
        return quantise(x / x.norm(dim=-1, keepdim=True))

    weights = torch.randint(0, 4, (n, k), generator=generator).to(torch.float64)
    return draw(n, k, r), draw(sets, texts, r).mT.contiguous(), weights


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("backend", ["torch", "numba"])
def test_factored_measure_equals_a_loop(kind, backend):
    factors, bank, weights = problem()
    got = factored_measure(factors, bank, weights, kind, backend=backend)
    for n in range(len(factors)):
        for s in range(len(bank)):
            table = (factors[n].double() @ bank[s].double()).tolist()
            want = of_table(table, weights[n].tolist(), kind)
            assert float(got[n, s]) == pytest.approx(want, abs=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_backends_and_memory_give_the_same_bits(kind):
    arguments = (*problem(1, n=40), kind)
    numba = factored_measure(*arguments, backend="numba")
    assert torch.equal(numba, factored_measure(*arguments, backend="torch"))
    assert torch.equal(numba, factored_measure(*arguments, backend="torch", memory=1))


@pytest.mark.parametrize("backend", ["torch", "numba"])
def test_nothing_in_nothing_out(backend):
    factors, bank, weights = problem()
    got = factored_measure(factors[:0], bank, weights[:0], "margin", backend=backend)
    assert got.shape == (0, 5)
    got = factored_measure(factors, bank[:0], weights, "margin", backend=backend)
    assert got.shape == (7, 0)
    got = factored_measure(factors[:, :0], bank, weights[:, :0], "gap", backend=backend)
    assert torch.equal(got, torch.zeros(7, 5, dtype=torch.float64))


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


@pytest.mark.gpu
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("backend", ["torch", "cuda"])
@pytest.mark.parametrize(("k", "r"), [(1, 1), (2, 2), (5, 5), (4, 9), (7, 7)])
@pytest.mark.parametrize(("n", "texts"), [(40, 203), (300, 1601)])
def test_cuda_gives_the_bits_of_the_cpu(backend, kind, k, r, n, texts):
    factors, bank, weights = random_problem(n, k, r, 30, texts)
    want = factored_measure(factors, bank, weights, kind, backend="numba")
    there = [x.cuda() for x in (factors, bank, weights)]
    assert torch.equal(factored_measure(*there, kind, backend=backend).cpu(), want)


@pytest.mark.gpu
def test_sizes_that_do_not_fit_are_refused_or_left_to_torch():
    factors, bank, weights = (x.cuda() for x in random_problem(3, 600, 2, 2, 5))
    with pytest.raises(DeviceError, match="600 clusters of 2 coordinates do not fit"):
        factored_measure(factors, bank, weights, "gap", backend="cuda")
    want = factored_measure(factors, bank, weights, "gap", backend="torch")
    assert torch.equal(factored_measure(factors, bank, weights, "gap"), want)
