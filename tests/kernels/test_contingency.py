"""The logic of kernels/contingency.cu, built for the CPU, against torch and the reference."""

from __future__ import annotations

import ctypes

import pytest
import torch

from psi_engine.ops import contingency as op
from tests.kernels.building import HOPPER_SHARED, build, launched
from tests.reference.nmi import normalized_mutual_information as reference

SIGNATURE = (
    "const int* cluster, const int* order, const int* label, const int* count, "
    "const long long* marginals, const long long* keys, const long long* table, double* out, "
    "int channels, int patches, int labels, int replicates"
)
CALL = (
    "cluster, order, label, count, marginals, keys, table, out, channels, patches, labels, "
    "replicates"
)


@pytest.fixture(scope="module")
def kernel(tmp_path_factory: pytest.TempPathFactory, watched: bool):
    """The kernel, built once per set of macros; called like the op."""
    built = {}

    def call(
        assignments: torch.Tensor,
        labels: torch.Tensor,
        keys: torch.Tensor,
        replicates: int,
        shared_limit: int = HOPPER_SHARED,
        grid: int | None = None,
    ) -> torch.Tensor:
        a, b, count = op._known_first(assignments, labels)
        (channels, patches), used = a.shape, int(b.max()) + 1
        how = op.plan(patches, used, shared_limit)
        assert how is not None
        name = tuple(how.defines.values())
        if name not in built:
            folder = tmp_path_factory.mktemp("kernels")
            built[name] = build(
                "contingency", SIGNATURE, CALL, how.defines, folder, watched=watched
            )
        out = torch.full((channels, replicates), 7.0, dtype=torch.float64)
        arrays = (*op.kernel_arguments(a, b, count, keys), out)
        launched(
            built[name](
                ctypes.c_uint(grid or channels * -(-replicates // how.block)),
                ctypes.c_uint(how.block),
                ctypes.c_long(how.shared_bytes),
                *(ctypes.c_void_p(x.data_ptr()) for x in arrays),
                *(channels, patches, used, replicates),
            )
        )
        return out

    return call


def problems(channels: int, patches: int, clusters: int, labels: int, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    a = torch.randint(0, clusters, (channels, patches), generator=generator)
    b = torch.randint(0, labels, (channels, patches), generator=generator)
    keys = torch.randint(-(2**62), 2**62, (channels,), generator=generator)
    return a, b, keys


def check(kernel, a: torch.Tensor, b: torch.Tensor, keys: torch.Tensor, m: int, **how) -> None:
    want = op.permutation_nmi(a, b, keys, m, backend="torch")
    assert torch.equal(kernel(a, b, keys, m, **how), want)


@pytest.mark.parametrize("patches", [4, 5, 50, 229, 230, 231, 300])
def test_has_the_bits_of_torch(kernel, patches: int) -> None:
    check(kernel, *problems(2, patches, min(5, patches), 20), 5)


def test_every_width_of_a_block(kernel) -> None:
    a, b, keys = problems(1, 50, 4, 30)
    for block in op.BLOCKS:
        limit = 20 * 50 + block * (50 + 30)
        assert op.plan(50, int(b.max()) + 1, limit).block == block
        check(kernel, a, b, keys, 150, shared_limit=limit)


@pytest.mark.races
def test_blocks_stride_over_channels_and_replicates(kernel) -> None:
    check(kernel, *problems(3, 12, 3, 4), 200, grid=2)


@pytest.mark.races
def test_unknown_patches_stay_out(kernel) -> None:
    a, b, keys = problems(4, 30, 3, 6)
    a[:, ::7] = -1
    b[1, 3:] = -1
    b[2] = -1
    check(kernel, a, b, keys, 6)
    assert kernel(a, b, keys, 6)[2].eq(0).all()


@pytest.mark.parametrize("which", ["one-label", "one-cluster", "all-different"])
def test_without_entropy_or_with_most(kernel, which: str) -> None:
    a, b, keys = problems(2, 20, 3, 5)
    if which == "one-label":
        b[:] = 2
    elif which == "one-cluster":
        a[:] = 0
    else:
        b[:] = torch.arange(20)
    check(kernel, a, b, keys, 4)
    assert bool(kernel(a, b, keys, 4).eq(0).all()) == (which != "all-different")


def test_values_are_those_of_shuffled_labels(kernel) -> None:
    """The mean over many shuffles is what the reference finds on shuffles of its own."""
    a, b, keys = problems(1, 24, 3, 4)
    got = kernel(a, b, keys, 2000).mean()
    generator = torch.Generator().manual_seed(3)
    own = [
        reference(a[0].numpy(), b[0][torch.randperm(24, generator=generator)].numpy())
        for _ in range(2000)
    ]
    spread = torch.tensor(own).std() / 2000**0.5
    assert abs(float(got) - sum(own) / 2000) < 5 * float(spread)


def test_too_large_sets_are_refused_with_the_reason() -> None:
    assert op.unsupported_reason(50, 50, HOPPER_SHARED) is None
    assert "do not fit" in op.unsupported_reason(5000, 5000, HOPPER_SHARED)
    assert op.unsupported_reason(1 << 16, 2, 1 << 40) is not None
