"""The logic of kernels/silhouette.cu, built for the CPU, against the reference."""

from __future__ import annotations

import ctypes

import numpy as np
import pytest
import torch

from psi_engine.ops import silhouette as op
from psi_engine.ops.fixed_point import BOUND, fraction_bits
from tests.kernels.building import HOPPER_SHARED, build, launched
from tests.reference.silhouette import silhouette as reference

SIGNATURE = (
    "const GRAM_T* grams, const long long* labels, double* out, int* bad, int problems, "
    "int patches, int clusters, double scale, double step, int tiled"
)
CALL = "grams, labels, out, bad, problems, patches, clusters, scale, step, tiled"


@pytest.fixture(scope="module", params=["float", "double"])
def kernel(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, watched: bool):
    """The kernel for one Gram type, called with tensors; asserts a clean launch."""
    defines = {
        "GRAM_T": request.param,
        "BLOCK": str(op.BLOCK),
        "BOUND": repr(BOUND),
        "RESOLUTION": repr(op.RESOLUTION),
    }
    folder = tmp_path_factory.mktemp("kernels")
    run = build("silhouette", SIGNATURE, CALL, defines, folder, watched=watched)
    dtype = {"float": torch.float32, "double": torch.float64}[request.param]

    def call(
        grams: torch.Tensor,
        labels: torch.Tensor,
        tiled: bool | None = None,
        grid: int | None = None,
    ) -> tuple[torch.Tensor, bool]:
        grams = grams.to(dtype).contiguous()
        n, patches = labels.shape
        k, item = int(labels.max()) + 1, grams.element_size()
        if tiled is None:
            tiled = op.shared_bytes(patches, k, item, True) <= HOPPER_SHARED
        out = torch.full((n, patches), 7.0, dtype=torch.float64)
        bad = torch.zeros(1, dtype=torch.int32)
        scale = 2.0 ** fraction_bits(patches)
        outcome = run(
            ctypes.c_uint(grid or n),
            ctypes.c_uint(op.BLOCK),
            ctypes.c_long(op.shared_bytes(patches, k, item, tiled)),
            *(ctypes.c_void_p(x.data_ptr()) for x in (grams, labels.contiguous(), out, bad)),
            n,
            patches,
            k,
            ctypes.c_double(scale),
            ctypes.c_double(1 / scale),
            int(tiled),
        )
        launched(outcome)
        return out, bool(bad)

    call.dtype = dtype  # type: ignore[attr-defined]
    return call


def rows(n: int, patches: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(n, patches, 16, generator=generator, dtype=torch.float64)
    return torch.nn.functional.normalize(z, dim=-1)


def random_labels(n: int, patches: int, k: int, seed: int = 1) -> torch.Tensor:
    return torch.randint(0, k, (n, patches), generator=torch.Generator().manual_seed(seed))


def check(kernel, grams: torch.Tensor, labels: torch.Tensor, **how) -> None:
    got, bad = kernel(grams, labels, **how)
    held = grams.to(kernel.dtype)
    assert not bad
    # The same bits as the torch path, and the reference within the grid's rounding.
    torch.testing.assert_close(
        got, op.silhouette(held, labels, backend="torch"), rtol=0, atol=0, equal_nan=True
    )
    for i in range(len(labels)):
        want = reference(held[i].double().numpy(), labels[i].numpy())
        np.testing.assert_allclose(got[i].numpy(), want, rtol=0, atol=1e-8)


@pytest.mark.parametrize("patches", [4, 5, 50, 229, 230, 231])
def test_matches_reference_and_torch(kernel, patches: int) -> None:
    n = 3 if patches < 100 else 1
    z = rows(n, patches)
    check(kernel, z @ z.mT, random_labels(n, patches, min(5, patches - 1)))


@pytest.mark.parametrize(("item", "most"), [(4, 237), (8, 167)])
def test_tile_ends_where_shared_memory_does(item: int, most: int) -> None:
    assert op.shared_bytes(most, 5, item, True) <= HOPPER_SHARED
    assert op.shared_bytes(most + 1, 5, item, True) > HOPPER_SHARED


@pytest.mark.races
def test_tile_and_global_reads_agree(kernel) -> None:
    z, labels = rows(3, 60), random_labels(3, 60, 4)
    grams = z @ z.mT
    assert torch.equal(kernel(grams, labels, tiled=True)[0], kernel(grams, labels, tiled=False)[0])


@pytest.mark.races
def test_blocks_stride_over_problems(kernel) -> None:
    z = rows(7, 20)
    check(kernel, z @ z.mT, random_labels(7, 20, 3), grid=2)


@pytest.mark.races
def test_masked_patches_count_nowhere(kernel) -> None:
    z, labels = rows(3, 40), random_labels(3, 40, 3)
    labels[:, ::3] = -1
    grams = z @ z.mT
    grams[:, 0, :] = torch.nan  # patch 0 is masked: its row may hold anything
    check(kernel, grams, labels)


@pytest.mark.parametrize(
    "labels",
    [
        pytest.param([0, 1, 2, 3, 4, 4], id="singletons"),
        pytest.param([0, 0, 0, 0, 0, 0], id="one-cluster"),
        pytest.param([0, 0, 5, 5, 0, 5], id="gap-in-numbers"),
        pytest.param([-1, -1, 0, 1, -1, -1], id="two-left"),
    ],
)
def test_degenerate_labels(kernel, labels: list[int]) -> None:
    z = rows(1, 6)
    check(kernel, z @ z.mT, torch.tensor([labels]))


@pytest.mark.races
def test_duplicates_and_ties(kernel) -> None:
    z = rows(1, 3)[:, [0, 0, 1, 1, 2, 2, 2, 0]]
    check(kernel, z @ z.mT, torch.tensor([[0, 0, 1, 1, 2, 2, 1, 2]]))
    same = torch.ones(1, 8, 8)
    assert kernel(same, torch.arange(8)[None] % 3)[0].eq(0).all()
    # Every distance is 1: a = b, so every silhouette is exactly 0.
    assert kernel(torch.eye(8)[None], torch.arange(8)[None] % 2)[0].eq(0).all()


@pytest.mark.races
@pytest.mark.parametrize("value", [float("nan"), float("inf"), 3.0])
def test_flags_entries_that_are_no_cosines(kernel, value: float) -> None:
    z = rows(1, 6)
    grams = z @ z.mT
    grams[0, 2, 3] = value
    grams[0, 3, 2] = value
    assert kernel(grams, random_labels(1, 6, 2))[1]


def test_shared_memory_mirror_is_tight(kernel) -> None:
    """The bytes the launcher asks for hold the layout: the shim reports an overrun otherwise."""
    for patches, k in ((5, 2), (6, 2), (7, 3), (8, 3)):
        z = rows(1, patches)
        check(kernel, z @ z.mT, random_labels(1, patches, k), tiled=True)
