"""The logic of kernels/separability.cu, built for the CPU, against torch and rotated_grams."""

from __future__ import annotations

import ctypes
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch

from psi_engine.nulls.draws import rotations_about_ones
from psi_engine.ops import _cuda_separability as cuda
from psi_engine.ops import separability as op
from psi_engine.ops.clustering import SEEDING
from psi_engine.ops.exact import unit_rows
from psi_engine.ops.fixed_point import fraction_bits
from psi_engine.ops.random import hash_keys
from psi_engine.ops.rotated_grams import PRODUCT_GRID, ROTATION_GRID, on_grid
from tests.kernels.building import HOPPER_SHARED, build, launched

GIVEN = ("const GRAM_T* grams, const unsigned char* valid", "grams, valid")
ROTATED = (
    "const double* turned, const double* products, const double* scales, double shift, "
    "int replicates",
    "turned, products, scales, shift, replicates",
)
POOLED = (
    "const float* rows, const long long* members, double* clarity, int dim",
    "rows, members, clarity, dim",
)
FORMS = {"given": GIVEN, "rotated": ROTATED, "pooled": POOLED}
SIGNATURE = (
    ", const long long* keys, const unsigned long long* partitions, const int* offsets, "
    "double* workspace, double* score, long long* clusters, long long* out, int* bad, "
    "int problems, int patches, int k_min, int k_max, int starts, unsigned long long seeding, "
    "double scale, double step"
)
CALL = (
    ", keys, partitions, offsets, workspace, score, clusters, out, bad, problems, patches, k_min, "
    "k_max, starts, seeding, scale, step"
)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, watched: bool):
    """Launch the kernel, built once per set of macros."""
    built = {}

    def call(sets, keys, patches, how, dtype, kind, restarts=2, k=(2, 5), grid=None):
        defines = cuda.kernel_defines(how, dtype, kind)
        name = tuple(defines.values())
        if name not in built:
            parameters, arguments = FORMS[kind]
            built[name] = build(
                "separability",
                parameters + SIGNATURE,
                arguments + CALL,
                defines,
                tmp_path_factory.mktemp("kernels"),
                watched=watched,
            )
        n = len(keys)
        grid = grid or n
        workspace = torch.full((grid * patches**2,), torch.nan, dtype=torch.float64)
        score = torch.full((n,), 7.0, dtype=torch.float64)
        clusters = torch.full((n,), 7)
        out = torch.full((n, patches), 7)
        bad = torch.zeros(1, dtype=torch.int32)
        table = [torch.from_numpy(x) for x in cuda.partition_table()]
        scale = 2.0 ** fraction_bits(patches)
        tensors = (keys, *table, workspace, score, clusters, out, bad)
        launched(
            built[name](
                ctypes.c_uint(grid),
                ctypes.c_uint(32 * how.warps),
                ctypes.c_long(how.shared_bytes),
                *(ctypes.c_void_p(x.data_ptr()) if torch.is_tensor(x) else x for x in sets),
                *(ctypes.c_void_p(x.data_ptr()) for x in tensors),
                *(n, patches, *k, restarts),
                ctypes.c_ulonglong(SEEDING & (2**64 - 1)),
                ctypes.c_double(scale),
                ctypes.c_double(1 / scale),
            )
        )
        return op.Separability(score, clusters, out), bool(bad)

    return call


def clustered(n: int, patches: int, seed: int = 0) -> torch.Tensor:
    """Unit rows around three directions, so that there is something to find."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(n, 3, 12, generator=generator)
    which = torch.randint(0, 3, (n, patches), generator=generator)
    rows = centres.gather(1, which[..., None].expand(-1, -1, 12))
    rows = rows + 0.7 * torch.randn(n, patches, 12, generator=generator)
    return torch.nn.functional.normalize(rows, dim=-1)


def keys_of(n: int) -> torch.Tensor:
    return hash_keys(torch.arange(n), 11)


def given(run, grams, *, mask=None, how=None, restarts=2, k=(2, 5), grid=None):
    n, patches = grams.shape[:2]
    how = how or cuda.plan(patches, HOPPER_SHARED, restarts)
    valid = torch.ones(n, patches, dtype=torch.uint8) if mask is None else mask.to(torch.uint8)
    sets = (grams.contiguous(), valid)
    return run(sets, keys_of(n), patches, how, grams.dtype, "given", restarts, k, grid)


def check(run, grams: torch.Tensor, **options) -> None:
    found, bad = given(run, grams, **options)
    assert not bad
    k_min, k_max = options.get("k", (2, 5))
    want = op.separability(
        grams,
        keys_of(len(grams)),
        k_min=k_min,
        k_max=k_max,
        mask=options.get("mask"),
        restarts=options.get("restarts", 2),
        backend="torch",
    )
    for got, expected in zip(found, want, strict=True):
        torch.testing.assert_close(got, expected, rtol=0, atol=0, equal_nan=True)


def grams_of(n: int, patches: int, seed: int = 0) -> torch.Tensor:
    rows = clustered(n, patches, seed)
    return rows @ rows.mT


@pytest.mark.parametrize("patches", [3, 4, 5, 7, 8, 33, 50])
def test_has_the_bits_of_torch(run, patches: int) -> None:
    check(run, grams_of(2, patches))


@pytest.mark.parametrize("warps", [1, 8])
def test_any_number_of_warps_keeps_the_best_start(run, warps: int) -> None:
    how = cuda.Launch(warps, cuda.shared_bytes(20, warps, True), True, 1)
    check(run, grams_of(2, 20), how=how, restarts=7)


def test_float64_grams(run) -> None:
    rows = clustered(1, 24).double()
    check(run, torch.nn.functional.normalize(rows, dim=-1) @ rows.mT)


@pytest.mark.parametrize("patches", [161, 162, 229, 230, 231])
def test_where_the_gram_matrix_leaves_shared_memory(run, patches: int) -> None:
    how = cuda.plan(patches, HOPPER_SHARED, 1)
    assert how.tiled == (patches < 162)
    check(run, grams_of(1, patches), restarts=1, k=(2, 3))


def test_shared_and_global_grams_agree(run) -> None:
    grams = grams_of(3, 20)
    how = cuda.plan(20, HOPPER_SHARED, 1)
    freed = how._replace(tiled=False, shared_bytes=cuda.shared_bytes(20, how.warps, False))
    near, far = (given(run, grams, how=x)[0] for x in (how, freed))
    for got, want in zip(near, far, strict=True):
        assert torch.equal(got, want)


@pytest.mark.races
def test_blocks_stride_over_problems(run) -> None:
    check(run, grams_of(5, 12), grid=2)


@pytest.mark.races
def test_ragged_masks(run) -> None:
    grams = grams_of(6, 20)
    counts = torch.tensor([2, 3, 5, 8, 13, 20])
    mask = (
        torch.rand(6, 20, generator=torch.Generator().manual_seed(2)).argsort(1) < counts[:, None]
    )
    # What a masked patch holds must not matter.
    grams = grams.masked_fill(~(mask[:, :, None] & mask[:, None, :]), torch.nan)
    check(run, grams, mask=mask)


@pytest.mark.parametrize("case", ["one-point", "duplicates", "orthogonal", "antipodal"])
def test_degenerate_sets(run, case: str) -> None:
    rows = {
        "one-point": torch.eye(4)[torch.zeros(10, dtype=torch.int64)],
        "duplicates": torch.eye(4)[torch.arange(12) % 3],
        "orthogonal": torch.eye(9),
        "antipodal": torch.eye(4)[torch.zeros(10, dtype=torch.int64)]
        * (1 - 2 * (torch.arange(10) % 2))[:, None],
    }[case][None]
    check(run, rows @ rows.mT)


@pytest.mark.parametrize("k", [(2, 2), (3, 7), (6, 7)])
def test_every_range_of_k(run, k: tuple[int, int]) -> None:
    check(run, grams_of(2, 16), k=k)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 3.0])
def test_entries_that_are_no_cosines_are_flagged(run, value: float) -> None:
    grams = grams_of(3, 8)
    grams[1, 2, 3] = grams[1, 3, 2] = value
    assert given(run, grams)[1]


def rotated_sets(channels: int, patches: int, m: int):
    """Rotations and the products of clustered rows, as the null ``rotation-samples`` makes them."""
    rows = clustered(channels, patches).double()
    products = rows @ rows.mT
    scale = torch.ldexp(
        torch.ones(channels, dtype=torch.float64), products.flatten(1).norm(dim=1).frexp().exponent
    )
    products = on_grid(products / scale[:, None, None], PRODUCT_GRID)
    rotations = on_grid(rotations_about_ones(hash_keys(torch.arange(m), 5), patches), ROTATION_GRID)
    return rotations, products, scale


def rotated(run, rotations, products, scale, shift, keys, how=None, restarts=2):
    patches, m = products.shape[-1], len(rotations)
    how = how or cuda.plan(patches, HOPPER_SHARED, restarts, "rotated")
    sets = (rotations.mT.contiguous(), products, scale, ctypes.c_double(shift), m)
    found, bad = run(sets, keys.flatten(), patches, how, torch.float64, "rotated", restarts)
    return found.score.reshape(keys.shape), bad


@pytest.mark.races
@pytest.mark.parametrize(
    ("patches", "shift", "restarts"),
    [(4, 0.0, 2), (5, 1.0, 2), (8, 0.0, 2), (21, 1.0, 2), (50, 0.0, 5)],
)
def test_rotated_sets_have_the_bits_of_the_two_steps(run, patches, shift, restarts) -> None:
    channels, m = 2, 3
    rotations, products, scale = rotated_sets(channels, patches, m)
    keys = hash_keys(torch.arange(channels)[:, None], torch.arange(m))
    sets = (rotations, products, scale, shift, keys)
    want = op.rotated_separability(*sets, restarts=restarts, backend="torch")
    found, bad = rotated(run, *sets, restarts=restarts)
    assert not bad
    assert torch.equal(found, want)
    assert want.unique().numel() > 1
    products[1, 0, 1] = torch.nan
    assert rotated(run, *sets, restarts=restarts)[1]


@pytest.mark.parametrize(("patches", "warps"), [(60, 1), (96, 1)])
def test_rotations_in_slices_and_panels(run, patches: int, warps: int) -> None:
    """More outputs than threads hold at once, a rotation larger than the warps' place."""
    how = cuda.Launch(warps, cuda.shared_bytes(patches, warps, True), True, 1)
    sets = (*rotated_sets(1, patches, 1), 0.0, keys_of(1)[None])
    found, bad = rotated(run, *sets, how=how, restarts=1)
    assert not bad
    assert torch.equal(found, op.rotated_separability(*sets, restarts=1, backend="torch"))


def pooled(run, rows, indices, how=None, restarts=2):
    n, patches = indices.shape
    how = how or cuda.plan(patches, HOPPER_SHARED, restarts, "pooled")
    clarity = torch.full((n,), 7.0, dtype=torch.float64)
    sets = (rows, indices, clarity, rows.shape[1])
    found, bad = run(sets, keys_of(n), patches, how, torch.float32, "pooled", restarts)
    return (found.score, clarity), bad


@pytest.mark.races
@pytest.mark.parametrize(
    ("patches", "dim", "tiled"), [(4, 8, True), (5, 3, True), (21, 300, True), (50, 64, True),
                                  (21, 40, False), (70, 16, True)],
)  # fmt: skip
def test_sets_of_a_pool_have_the_bits_of_their_grams(run, patches, dim, tiled) -> None:
    rows = unit_rows(torch.randn(90, dim, generator=torch.Generator().manual_seed(1))).rows
    rows[7] = rows[3]
    indices = (
        hash_keys(torch.arange(3)[:, None], torch.arange(90)).argsort(1)[:, :patches].contiguous()
    )
    indices[0, :2] = torch.tensor([3, 7])
    warps = 5 if tiled else 1
    how = cuda.Launch(warps, cuda.shared_bytes(patches, warps, tiled), tiled, 1)
    found, bad = pooled(run, rows, indices, how)
    assert not bad
    want = op.pooled_separability(rows, indices, keys_of(3), restarts=2, backend="torch")
    for got, expected in zip(found, want, strict=True):
        assert torch.equal(got, expected)
    rows[indices[1, 0]] = torch.nan
    assert pooled(run, rows, indices, how)[1]


def test_the_shared_memory_asked_for_is_what_is_used(run) -> None:
    """One byte more of layout and the shim reports an overrun; sizes of every parity."""
    for patches in (9, 10, 11, 12):
        check(run, grams_of(1, patches), restarts=1, k=(2, 2))


@pytest.mark.parametrize(
    ("patches", "starts", "blocks"), [(4, 5, 4), (50, 5, 4), (50, 20, 4), (80, 5, 2)]
)
def test_the_plan_keeps_a_processor_busy(patches: int, starts: int, blocks: int) -> None:
    """As many blocks as share a processor's memory and registers, all of their warps at work."""
    how = cuda.plan(patches, HOPPER_SHARED, starts)
    assert how.warps == 5
    assert how.shared_bytes == cuda.shared_bytes(patches, 5, True)
    assert min((HOPPER_SHARED + 1024) // (how.shared_bytes + 1024), 20 // 5) == how.blocks == blocks


@pytest.mark.parametrize(
    ("patches", "starts"), [(4, 5), (50, 5), (50, 1), (80, 5), (161, 5), (200, 5)]
)
def test_the_shared_memory_reserved_holds_the_plan_and_no_block_more(
    patches: int, starts: int
) -> None:
    how = cuda.plan(patches, HOPPER_SHARED, starts)
    there = HOPPER_SHARED + 1024
    reserved = cuda.carveout(how, HOPPER_SHARED) * there / 100
    needed = how.blocks * (how.shared_bytes + 1024)
    assert needed <= reserved <= there
    assert reserved - needed < there / 100


@pytest.mark.parametrize(("patches", "sets"), [(4, 7), (4, 70_000), (200, 7), (200, 1100)])
def test_the_launch_has_the_blocks_of_the_plan(
    monkeypatch: pytest.MonkeyPatch, patches: int, sets: int
) -> None:
    """With the Gram matrix in global memory as many as run at once; each has a place for one."""
    launches, function = [], SimpleNamespace()
    monkeypatch.setattr(cuda._cuda, "kernel", lambda *_: function)
    monkeypatch.setattr(cuda._cuda, "launch", lambda *given: launches.append(given))
    monkeypatch.setattr(cuda._cuda, "shared_memory_limit", lambda device: HOPPER_SHARED)
    monkeypatch.setattr(cuda._cuda, "processors", lambda device: 132)
    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
    cuda.launch_given(torch.zeros(sets, patches, patches), keys_of(sets), 2, 5, None, 5)
    ((_, grid, block, arguments, shared_bytes, _),) = launches
    how = cuda.plan(patches, HOPPER_SHARED, 5)
    assert (block, shared_bytes) == (32 * how.warps, how.shared_bytes)
    assert function.preferred_shared_memory_carveout == cuda.carveout(how, HOPPER_SHARED)
    workspace = arguments[5]
    if how.tiled:
        assert grid == min(sets, 1 << 16)
        assert workspace == 0
    else:
        assert how.blocks == 8
        assert grid == min(sets, 8 * 132)
        assert workspace.shape == (grid * patches**2,)


def test_where_the_plans_end() -> None:
    for kind, most in (("given", 1737), ("pooled", 1737), ("rotated", 154)):
        assert cuda.plan(most, HOPPER_SHARED, 5, kind) is not None
        assert cuda.plan(most + 1, HOPPER_SHARED, 5, kind) is None
    assert cuda.plan(96, HOPPER_SHARED, 1, "rotated").warps == 1
    assert cuda.plan(97, HOPPER_SHARED, 1, "rotated").warps == 2  # one could not hold a column


def test_what_does_not_fit_is_refused_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(op._cuda, "shared_memory_limit", lambda device: 40_000)
    grams = torch.empty(1)
    assert op.unsupported_reason(grams, 50, 2, 5, "hartigan") is None
    assert "fit 40000 B" in op.unsupported_reason(grams, 300, 2, 5, "hartigan")
    assert "not 8" in op.unsupported_reason(grams, 50, 2, 8, "hartigan")
    assert "lloyd" in op.unsupported_reason(grams, 50, 2, 5, "lloyd")
    assert "float16" in op.unsupported_reason(grams.half(), 50, 2, 5, "hartigan")
    assert op.unsupported_reason(grams, 80, 2, 5, "hartigan", "rotated") is not None
