"""The logic of kernels/survey.cu, built for the CPU, against torch."""

from __future__ import annotations

import ctypes

import pytest
import torch

from psi_engine.errors import DeviceError, InputError
from psi_engine.ops import survey as op
from psi_engine.ops import topk
from psi_engine.ops.moments import from_limbs
from tests.kernels.building import build, launched

SIGNATURE = (
    "const void* x, long long stride_b, long long stride_c, long long stride_s, "
    "const long long* image_ids, float* top_keys, long long* top_sites, float* top_values, "
    "float* bottom_keys, long long* bottom_sites, float* bottom_values, float* low, float* high, "
    "long long* totals, long long* squares, long long* zeros, long long* nonfinite, int batch, "
    "int channels, int sites, int top_k, int bottom_k, int per_image"
)
CALL = (
    "static_cast<const X_T*>(x), stride_b, stride_c, stride_s, image_ids, top_keys, top_sites, "
    "top_values, bottom_keys, bottom_sites, bottom_values, low, high, totals, squares, zeros, "
    "nonfinite, batch, channels, sites, top_k, bottom_k, per_image"
)


@pytest.fixture(scope="module")
def kernel(tmp_path_factory: pytest.TempPathFactory):
    """The kernel, built once per set of macros; works on the buffers in place."""
    built = {}

    def call(x, image_ids, top, bottom, per_image: bool):
        how = op.plan(x, max(top.keys.shape[1], bottom.keys.shape[1]))
        name = tuple(how.defines.values())
        if name not in built:
            folder = tmp_path_factory.mktemp("kernels")
            built[name] = build("survey", SIGNATURE, CALL, how.defines, folder)
        found = op.blank_moments(x)
        outputs = (found.minimum, found.maximum, found.total, found.squares, found.zeros)
        launched(
            built[name](
                ctypes.c_uint(-(-x.shape[1] // how.tile)),
                ctypes.c_uint(op.BLOCK),
                ctypes.c_long(how.shared_bytes),
                ctypes.c_void_p(x.data_ptr()),
                *(ctypes.c_longlong(stride) for stride in x.stride()),
                *(
                    ctypes.c_void_p(part.data_ptr())
                    for part in (image_ids, *top, *bottom, *outputs, found.nonfinite)
                ),
                *op.kernel_sizes(x, top, bottom, per_image),
            )
        )
        return found._replace(finite=x.shape[0] * x.shape[2] - found.nonfinite)

    return call


def buffers(channels: int, k: int, bottom_k: int):
    return tuple(topk.empty(channels, size, torch.float32, "cpu") for size in (k, bottom_k))


def laid_out(x: torch.Tensor, channels_last: bool) -> torch.Tensor:
    return x.permute(0, 2, 1).contiguous().permute(0, 2, 1) if channels_last else x.contiguous()


def values(batch: int, channels: int, sites: int, kind: str, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(batch, channels, sites, generator=generator)
    if kind == "ties":
        x = x.round()
    elif kind == "relu":
        x = x.relu()
    elif kind == "negative":
        x = -x.abs() - 1
    elif kind == "constant":
        x = torch.full_like(x, 0.25)
    elif kind == "broken":
        x[x > 1.5] = torch.nan
        x[x < -1.5] = -torch.inf
        x[:, 0] = torch.inf
    elif kind == "zeros":
        x = torch.where(x > 0, 0.0, -0.0)
    return x


def check(kernel, batches, k: int, bottom_k: int, per_image: bool) -> None:
    """Batch after batch into the kernel's buffers and into torch's."""
    channels, sites = batches[0].shape[1:]
    group = sites if per_image else 1
    top, bottom = buffers(channels, k, bottom_k)
    want_top, want_bottom = buffers(channels, k, bottom_k)
    start = 3
    for x in batches:
        ids = start + torch.arange(len(x)) * 2
        start = int(ids[-1]) + 5
        found = kernel(x, ids, top, bottom, per_image)
        want_top, want_bottom, want = op.survey(
            x, ids, want_top, want_bottom, sites_per_group=group, fresh=True, backend="torch"
        )
        for got, expected in ((top, want_top), (bottom, want_bottom)):
            for name in topk.Entries._fields:
                torch.testing.assert_close(
                    getattr(got, name), getattr(expected, name), rtol=0, atol=0, equal_nan=True
                )
        for name in ("minimum", "maximum", "zeros", "finite", "nonfinite"):
            assert torch.equal(getattr(found, name), getattr(want, name)), name
        for name in ("total", "squares"):  # an image's sum is made in another order
            got, expected = (from_limbs(getattr(m, name)) for m in (found, want))
            size = from_limbs(want.squares).sqrt() + 1e-300
            assert bool(((got - expected).abs() <= 1e-13 * size * len(x) ** 0.5 * sites).all())


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("per_image", [False, True])
@pytest.mark.parametrize(
    "kind", ["normal", "ties", "relu", "negative", "constant", "broken", "zeros"]
)
def test_has_the_buffers_of_torch(kernel, kind: str, per_image: bool, channels_last: bool) -> None:
    batches = [laid_out(values(9, 3, 20, kind, seed), channels_last) for seed in range(3)]
    check(kernel, batches, 5, 4, per_image)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("channels_last", [False, True])
def test_halves(kernel, dtype: torch.dtype, channels_last: bool) -> None:
    x = values(4, 5, 30, "normal", 0).to(dtype)
    x[0, 0, :4] = torch.tensor([6e-8, -6e-8, torch.inf, torch.nan])  # subnormal in float16
    x[1, 1] = torch.finfo(dtype).max
    check(kernel, [laid_out(x, channels_last)], 7, 3, False)


@pytest.mark.parametrize("channels_last", [False, True])
def test_more_survivors_than_there_is_room_for(kernel, channels_last: bool) -> None:
    """Rising values: every site beats all before it, so the room fills again and again."""
    x = torch.arange(20 * 1 * 300, dtype=torch.float32).reshape(20, 1, 300).expand(-1, 9, -1)
    assert op._STAGED // (8 if channels_last else 1) < 20 * 300
    check(kernel, [laid_out(x, channels_last)], 6, 0, False)
    check(kernel, [laid_out(-x, channels_last)], 0, 6, False)


def test_more_images_than_there_is_room_for(kernel) -> None:
    x = torch.arange(600, dtype=torch.float32).reshape(600, 1, 1).expand(-1, 9, 2)
    check(kernel, [laid_out(x, True)], 5, 5, True)


def test_both_ends_fill_up_in_turn(kernel) -> None:
    """While one end is merged, no warp may go on and add to the other."""
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(8, 1, 768, generator=generator) - 0.5

    def high(n: int) -> torch.Tensor:
        return 10 + torch.rand(8, 1, n, generator=generator)

    x[:, :, 256:384] = torch.cat([high(64), -high(64)], 2)
    x[:, :, 384:512] = torch.cat([high(65), -high(61), torch.zeros(8, 1, 2)], 2)
    x[:, :, 512:640] = -high(128)
    check(kernel, [x], 5, 5, False)


def test_ties_go_to_the_first_site_whatever_the_warp(kernel) -> None:
    """Equal values everywhere: the buffer holds the first sites of the first image."""
    top, bottom = buffers(2, 7, 0)
    kernel(torch.ones(40, 2, 50), torch.arange(40), top, bottom, False)
    assert torch.equal(top.sites, torch.arange(7).expand(2, -1))


def test_wide_buffers_and_many_channels(kernel) -> None:
    batches = [laid_out(values(6, 70, 33, "normal", seed), True) for seed in range(2)]
    check(kernel, batches, 150, 40, False)


def test_layers_without_positions_are_read_as_sectors_of_channels(kernel) -> None:
    x = values(30, 20, 1, "normal", 0)
    assert op.plan(x, 3).tile == 8
    check(kernel, [x], 3, 3, False)


@pytest.mark.parametrize("fresh", [True, False])
def test_a_named_backend_is_used_or_refused(fresh: bool) -> None:
    x = values(2, 3, 4, "normal", 0)
    for backend, error in (("cuda", DeviceError), ("numba", InputError)):
        with pytest.raises(error):
            op.survey(
                x, torch.arange(2), *buffers(3, 2, 2),
                sites_per_group=1, fresh=fresh, backend=backend,
            )  # fmt: skip


def test_what_does_not_fit_is_refused_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(op._cuda, "shared_memory_limit", lambda device: 232_448)
    x = torch.zeros(2, 3, 4)
    assert op.unsupported_reason(x, 100) is None
    assert "float64" in op.unsupported_reason(x.double(), 100)
    assert "need" in op.unsupported_reason(x, 100_000)
    assert "32 bits" in op.unsupported_reason(torch.zeros(1).expand(1 << 16, 1, 1 << 16), 10)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", list(op._FORMATS))
@pytest.mark.parametrize("per_image", [False, True])
def test_cuda_has_the_buffers_of_the_cpu(dtype: torch.dtype, per_image: bool) -> None:
    x = values(64, 100, 49, "ties", 0).to(dtype)
    ids, group = torch.arange(64), 49 if per_image else 1
    want = op.survey(
        x, ids, *buffers(100, 20, 10), sites_per_group=group, fresh=True, backend="torch"
    )
    for channels_last in (False, True):
        empty = [topk.Entries(*(y.cuda() for y in part)) for part in buffers(100, 20, 10)]
        got = op.survey(
            laid_out(x.cuda(), channels_last),
            ids.cuda(),
            *empty,
            sites_per_group=group,
            fresh=True,
            backend="cuda",
        )
        for part, expected in zip(got[:2], want[:2], strict=True):
            assert torch.equal(part.sites.cpu(), expected.sites)
            assert torch.equal(part.keys.cpu(), expected.keys)
