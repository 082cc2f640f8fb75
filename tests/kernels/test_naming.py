"""The logic of kernels/naming.cu, built for the CPU, against torch and the reference."""

from __future__ import annotations

import ctypes

import pytest
import torch

from psi_engine.ops import naming as op
from psi_engine.ops.exact import quantise
from tests.kernels.building import HOPPER_SHARED, build, launched
from tests.reference.distinctness import of_table

SIGNATURE = (
    "const double* factors, const float* bank, const double* weights, double* out, int channels, "
    "int sets, int k, int rank, int texts, int tile, int contrast"
)
CALL = "factors, bank, weights, out, channels, sets, k, rank, texts, tile, contrast"
KINDS = ("gap", "contrast", "margin")


@pytest.fixture(scope="module")
def kernel(tmp_path_factory: pytest.TempPathFactory, watched: bool):
    """The kernel, built once per set of macros; called like the op."""
    built = {}

    def call(factors, bank, weights, kind, how=None, grid=None):
        (n, k, rank), (sets, _, texts) = factors.shape, bank.shape
        how = how or op.plan(n, k, rank, texts, HOPPER_SHARED)
        defines = op.kernel_defines(how, kind)
        name = tuple(defines.values())
        if name not in built:
            folder = tmp_path_factory.mktemp("kernels")
            built[name] = build("naming", SIGNATURE, CALL, defines, folder, watched=watched)
        out = torch.full((n, sets), 7.0, dtype=torch.float64)
        arrays = (*op.kernel_arguments(factors, bank, weights), out)
        launched(
            built[name](
                ctypes.c_uint(grid or sets * -(-n // how.block)),
                ctypes.c_uint(how.block),
                ctypes.c_long(how.shared_bytes),
                *(ctypes.c_void_p(x.data_ptr()) for x in arrays),
                *(n, sets, k, rank, texts, how.tile, kind == "contrast"),
            )
        )
        return out

    return call


def problem(n: int, k: int, rank: int, sets: int, texts: int, seed: int = 0):
    """Rows on the grid, texts of which a few repeat, weights of which some are 0."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        x = torch.randn(*shape, generator=generator, dtype=torch.float64)
        return quantise(x / x.norm(dim=-1, keepdim=True))

    bank = draw(sets, texts, rank)
    few = texts // 8
    bank[:, texts - few :] = bank[:, :few].clone()
    weights = torch.randint(0, 30, (n, k), generator=generator) / 3
    weights[torch.rand(n, k, generator=generator) < 0.3] = 0
    weights[0] = 0
    weights[1, 1:] = 0
    return draw(n, k, rank), bank.mT.contiguous(), weights.to(torch.float64)


def check(kernel, problem, kind: str, **how) -> None:
    want = op.factored_measure(*problem, kind, backend="torch")
    assert torch.equal(kernel(*problem, kind, **how), want)


SIZES = [*((k, k, kind) for k in (5, 7) for kind in KINDS), (1, 1, "gap")]
SIZES += [(5, 1, "contrast"), (2, 40, "margin")]


@pytest.mark.parametrize(("k", "rank", "kind"), SIZES)
def test_has_the_bits_of_torch(kernel, k: int, rank: int, kind: str) -> None:
    check(kernel, problem(6, k, rank, 3, 33), kind)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("texts", [2, 3, 31, 32, 300, 1601])
def test_every_number_of_texts(kernel, texts: int, kind: str) -> None:
    """1601 take three tiles, or four."""
    check(kernel, problem(4, 5, 5, 2, texts), kind)
    check(kernel, problem(4, 7, 7, 1, texts), kind)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("k", [5, 7])
def test_tiles_of_four_texts(kernel, k: int, kind: str) -> None:
    """The last holds one text, beside what is left of the tile before. 7 are 4 clusters and 3."""
    how = op.plan(20, k, k, 21, HOPPER_SHARED)
    assert how[:2] == {5: (5, 5), 7: (4, 0)}[k]
    how = how._replace(tile=4, shared_bytes=how.shared_bytes - 8 * k * (how.tile - 4))
    check(kernel, problem(20, k, k, 5, 21), kind, how=how)


@pytest.mark.races
def test_blocks_stride_over_channels_and_sets(kernel) -> None:
    """Threads without a channel wait at the barriers with the others."""
    sets = problem(70, 5, 5, 5, 9)
    wide = op.plan(70, 5, 5, 9, HOPPER_SHARED)
    assert wide.block == 128
    check(kernel, sets, "margin", grid=2)
    check(kernel, sets, "margin", how=op.plan(32, 5, 5, 9, HOPPER_SHARED), grid=4)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("k", [5, 7])
def test_the_first_of_equally_good_texts_is_the_name(kernel, k: int, kind: str) -> None:
    """Texts and rows of quarters: many are equally good for one cluster, and not for another."""
    generator = torch.Generator().manual_seed(1)
    factors = torch.randint(-1, 2, (40, k, k), generator=generator) / 4
    bank = torch.randint(-1, 2, (3, k, 33), generator=generator) / 4
    check(kernel, (factors, bank, torch.ones(40, k, dtype=torch.float64)), kind)


@pytest.mark.parametrize("kind", KINDS)
def test_has_the_values_of_the_reference(kernel, kind: str) -> None:
    factors, bank, weights = problem(5, 5, 5, 2, 30, seed=3)
    got = kernel(factors, bank, weights, kind)
    for n in range(5):
        for s in range(2):
            table = (factors[n].double() @ bank[s].double()).tolist()
            want = of_table(table, weights[n].tolist(), kind)
            assert float(got[n, s]) == pytest.approx(want, abs=1e-14)


@pytest.mark.races
@pytest.mark.parametrize("kind", KINDS)
def test_equal_texts_everywhere(kernel, kind: str) -> None:
    """All texts are the first one: no gap, and every cluster has the same name."""
    factors, bank, weights = problem(6, 5, 5, 2, 40)
    bank[:] = bank[:, :, :1].clone()
    check(kernel, (factors, bank, weights), kind)
    assert bool((kernel(factors, bank, weights, kind) == 0).all()) == (kind != "contrast")


def test_what_is_kept_in_registers() -> None:
    assert op.plan(3072, 5, 5, 300, HOPPER_SHARED)[:3] == (5, 5, 128)
    assert op.plan(3072, 6, 5, 300, HOPPER_SHARED)[:2] == (3, 0)
    assert op.plan(3072, 11, 1, 300, HOPPER_SHARED)[:2] == (4, 0)
    assert [op.plan(n, 5, 5, 300, HOPPER_SHARED).block for n in (1, 32, 33, 64, 65)] == [
        *(32, 32, 64, 64, 128)
    ]


def test_what_does_not_fit_is_narrower_and_then_refused() -> None:
    for k, rank, texts in [(5, 5, 1601), (5, 512, 300), (100, 100, 300), (300, 2, 9), (2, 7000, 9)]:
        how = op.plan(3072, k, rank, texts, HOPPER_SHARED)
        assert how.shared_bytes == 8 * rank * how.tile + 20 * k * how.block <= HOPPER_SHARED
        assert op.unsupported_reason(k, rank, HOPPER_SHARED) is None
    assert op.plan(3072, 100, 100, 300, HOPPER_SHARED).block == 64
    assert op.plan(3072, 300, 2, 9, HOPPER_SHARED).block == 32
    assert "do not fit" in op.unsupported_reason(500, 5, HOPPER_SHARED)
    assert "do not fit" in op.unsupported_reason(5, 8000, HOPPER_SHARED)
