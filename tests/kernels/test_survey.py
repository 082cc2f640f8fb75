"""The logic of kernels/survey.cu, built for the CPU, against torch."""

from __future__ import annotations

import pytest
import torch

from psi_engine.errors import DeviceError, InputError
from psi_engine.ops import _cuda, topk
from psi_engine.ops import survey as op
from psi_engine.ops.moments import empty_moments, from_limbs
from tests.kernels.building import stand_ins

SIGNATURE = (
    "const void* x, long long stride_b, long long stride_c, long long stride_s, "
    "const long long* image_ids, float* top_keys, long long* top_sites, float* top_values, "
    "float* bottom_keys, long long* bottom_sites, float* bottom_values, float* minimum, "
    "float* maximum, u64* totals, u64* squares, u64* zeros, u64* finite_sites, u64* nonfinite, "
    "unsigned* counts, u64* room, int batch, int channels, int sites, int top_k, int bottom_k, "
    "int per_image, int length, int slices, unsigned places"
)
CALL = (
    "static_cast<const X_T*>(x), stride_b, stride_c, stride_s, image_ids, top_keys, top_sites, "
    "top_values, bottom_keys, bottom_sites, bottom_values, minimum, maximum, totals, squares, "
    "zeros, finite_sites, nonfinite, counts, room, batch, channels, sites, top_k, bottom_k, "
    "per_image, length, slices, places"
)


@pytest.fixture(scope="module")
def kernel(tmp_path_factory: pytest.TempPathFactory, watched: bool):
    """The launcher with the kernel built for the CPU, once per set of macros; works in place."""
    parts = stand_ins({"survey": (SIGNATURE, CALL)}, tmp_path_factory, watched=watched)

    def call(*arguments, processors: int = 1) -> None:
        with pytest.MonkeyPatch.context() as patch:
            for name, part in parts.items():
                patch.setattr(op._cuda, name, part)
            patch.setattr(op._cuda, "processors", lambda device: processors)
            op._launch(*arguments)

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


def check(kernel, batches, k: int, bottom_k: int, per_image: bool, **how) -> None:
    """Batch after batch into the kernel's buffers and statistics and into torch's."""
    channels, sites = batches[0].shape[1:]
    group = sites if per_image else 1
    top, bottom = buffers(channels, k, bottom_k)
    want_top, want_bottom = buffers(channels, k, bottom_k)
    moments, want = (empty_moments(channels, "cpu") for _ in range(2))
    start = images = 0
    for x in batches:
        ids = start + 3 + torch.arange(len(x)) * 2
        start, images = int(ids[-1]), images + len(x)
        kernel(x, ids, top, bottom, moments, per_image, **how)
        want_top, want_bottom, want = op.survey(
            x, ids, want_top, want_bottom,
            sites_per_group=group, fresh=True, backend="torch", moments=want,
        )  # fmt: skip
        for got, expected in ((top, want_top), (bottom, want_bottom)):
            for name in topk.Entries._fields:
                torch.testing.assert_close(
                    getattr(got, name), getattr(expected, name), rtol=0, atol=0, equal_nan=True
                )
        for name in ("minimum", "maximum", "zeros", "finite", "nonfinite"):
            assert torch.equal(getattr(moments, name), getattr(want, name)), name
        # An image's sums are made in another order.
        got, expected = (from_limbs(m.squares) for m in (moments, want))
        torch.testing.assert_close(got, expected, rtol=1e-13, atol=0)
        size = expected.sqrt() * (images * sites) ** 0.5  # of the sum of |x|, at most
        got, expected = (from_limbs(m.total) for m in (moments, want))
        assert bool(((got - expected).abs() <= 1e-13 * size).all())


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
    x[2:, 3] *= torch.finfo(dtype).tiny / 8  # nothing but subnormal numbers
    x[:2, 3] = 0
    check(kernel, [laid_out(x, channels_last)], 7, 3, False)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("kind", ["rising", "constant", "two heights"])
def test_more_survivors_than_there_is_room_for(kernel, kind: str, channels_last: bool) -> None:
    """The channel is read again; where values tie, down to the last digit of the sites."""
    x = torch.arange(8 * 300, dtype=torch.float32).reshape(8, 1, 300).expand(-1, 2, -1)
    if kind == "constant":
        x = torch.ones_like(x)
    elif kind == "two heights":  # too many above, and those below have the greater second digits
        x = torch.where(x % 2 == 0, 4096 + x / 4, 7 + x * 1e-5)
    x = laid_out(x, channels_last)
    assert op.plan(x, 6, False, 1).places < op._CAPACITY < 8 * 300
    check(kernel, [x, x + 1], 6, 0, False)
    check(kernel, [-x], 0, 6, False)


@pytest.mark.races
@pytest.mark.parametrize("per_image", [False, True])
def test_the_last_block_merges_what_others_found(kernel, per_image: bool) -> None:
    x = values(20, 2, 3, "normal", 0)
    how = op.plan(x, 4, per_image, 1)
    assert how.tiles == 1 < how.slices
    assert op.plan(x, 4, False, 1).places >= 20 * 3
    check(kernel, [x], 4, 3, per_image)


@pytest.mark.races
def test_more_images_than_are_sorted_at_once(kernel) -> None:
    x = torch.arange(1100, dtype=torch.float32).reshape(1100, 1, 1).expand(-1, 1, 2)
    assert op._CAPACITY < 1100
    check(kernel, [laid_out(x, True)], 5, 3, True)


@pytest.mark.races
def test_ties_go_to_the_first_site_whatever_the_warp(kernel) -> None:
    """Equal values everywhere: the buffer holds the first sites of the first image."""
    top, bottom = buffers(2, 7, 0)
    moments = empty_moments(2, "cpu")
    kernel(torch.ones(40, 2, 50), torch.arange(40), top, bottom, moments, False)
    assert torch.equal(top.sites, torch.arange(7).expand(2, -1))


@pytest.mark.parametrize("per_image", [False, True])
def test_an_end_that_is_not_wanted(kernel, per_image: bool) -> None:
    x = values(4, 2, 20, "broken", 0)
    check(kernel, [x], 0, 3, per_image)
    check(kernel, [laid_out(x, True)], 3, 0, per_image)
    check(kernel, [x], 0, 0, per_image)


def test_wide_buffers(kernel) -> None:
    check(kernel, [laid_out(values(6, 2, 33, "normal", seed), True) for seed in range(2)],
          150, 40, False)  # fmt: skip


@pytest.mark.parametrize("per_image", [False, True])
@pytest.mark.parametrize("channels_last", [False, True])
def test_many_channels(kernel, channels_last: bool, per_image: bool) -> None:
    """Two tiles, the last one partly filled."""
    batches = [laid_out(values(4, 70, 5, "ties", seed), channels_last) for seed in range(2)]
    check(kernel, batches, 3, 2, per_image, processors=132)


@pytest.mark.races
@pytest.mark.parametrize("per_image", [False, True])
def test_few_and_many_survivors_side_by_side(kernel, per_image: bool) -> None:
    """Channels that a warp merges beside some that take the whole block, at either end."""
    x = torch.full((160, 70, 2), torch.nan)
    for c in range(70):
        survivors = 70 + c if c % 8 == 6 else c % 8
        images = survivors if per_image else survivors // 2
        x[:images, c] = values(images, 1, 2, "ties", c)[:, 0]
    x = laid_out(x, True)
    how = op.plan(x, 3, per_image, 1)
    assert how.tiles == 2
    assert 70 < min(how.places, op._CAPACITY // 8) < 70 + 62
    check(kernel, [x], 3, 2, per_image)


@pytest.mark.races
@pytest.mark.parametrize("per_image", [False, True])
def test_the_cut_and_the_layout_change_no_bit(kernel, per_image: bool) -> None:
    """Images of several parts, in one block or many, one read or several at a time."""
    x = values(3, 4, 196, "broken", 1)
    assert op.part_length(196) == 104
    found = []
    for channels_last, processors in ((True, 1), (True, 132), (False, 1), (False, 132)):
        top, bottom = buffers(4, 6, 6)
        moments = empty_moments(4, "cpu")
        ids = torch.arange(3)
        kernel(
            laid_out(x, channels_last), ids, top, bottom, moments, per_image, processors=processors
        )
        found.append([*top, *bottom, *moments])
    for other in found[1:]:
        for got, want in zip(other, found[0], strict=True):
            torch.testing.assert_close(got, want, rtol=0, atol=0, equal_nan=True)


@pytest.mark.races
def test_any_strides(kernel) -> None:
    wide = torch.randn(3, 11, 8, generator=torch.Generator().manual_seed(0))
    maps = wide.permute(0, 2, 1)  # channels last
    for x in (maps, maps[:, 1:7], maps[:, ::2], maps[:, :, ::2], wide[:, :, ::3]):
        check(kernel, [x], 4, 3, False)
        check(kernel, [x], 4, 3, True)


def test_eight_bytes_are_read_where_they_begin_at_eight() -> None:
    def width(x: torch.Tensor) -> str:
        return op.plan(x, 5, True, 132).defines["WIDTH"]

    maps = torch.zeros(3, 11, 8).permute(0, 2, 1)
    assert width(maps) == "2"
    assert width(maps.half()) == width(maps.bfloat16()) == "4"
    assert width(maps[:, 1:7]) == width(maps[:, :7]) == width(maps[:, ::2]) == "1"
    assert width(torch.zeros(3, 11, 7).permute(0, 2, 1)) == "1"
    assert width(torch.zeros(3, 8, 11)) == "1"


@pytest.mark.parametrize("scale", [1e-44, 1e-30, 1e-12, 1e12, 1e36])
def test_sums_of_any_size(kernel, scale: float) -> None:
    check(kernel, [values(4, 2, 20, "normal", 0) * scale], 3, 3, True)


@pytest.mark.parametrize("per_image", [False, True])
def test_buffers_that_torch_began(kernel, per_image: bool) -> None:
    """A batch that the kernel does not take, then one that it does, into the same buffers."""
    x, group = values(6, 3, 20, "ties", 0), 20 if per_image else 1
    ids = torch.arange(6)

    def begun():
        options = {"sites_per_group": group, "fresh": True, "backend": "torch"}
        return op.survey(x.double(), ids, *buffers(3, 5, 4), **options)

    top, bottom, moments = begun()
    kernel(x, ids + 6, top, bottom, moments, per_image)
    *before, had = begun()
    want_top, want_bottom, _ = op.survey(
        x, ids + 6, *before, moments=had, sites_per_group=group, fresh=True, backend="torch"
    )
    for got, want in zip((*top, *bottom), (*want_top, *want_bottom), strict=True):
        assert torch.equal(got, want)


def test_what_the_kernel_would_read_wrongly_is_refused(kernel) -> None:
    x, moments = values(2, 3, 4, "normal", 0), empty_moments(3, "cpu")
    top, bottom = buffers(3, 2, 2)
    wide = topk.Entries(*(part[:, :2] for part in buffers(3, 4, 0)[0]))
    limbs = moments._replace(total=moments.total.T.contiguous().T)
    for arguments in ((wide, bottom, moments), (top, wide, moments), (top, bottom, limbs)):
        with pytest.raises(InputError, match="contiguous"):
            kernel(x, torch.arange(2), *arguments, False)
    kernel(x, torch.arange(9)[1:5:2], top, bottom, moments, True)
    assert top.sites.min() >= 4  # images 1 and 3
    assert (top.sites // 4 % 2 == 1).all()


@pytest.mark.parametrize(("channels", "sites"), [(1024, 196), (2048, 49), (256, 3136), (64, 1)])
@pytest.mark.parametrize("batch", [1, 32, 128])
def test_the_plan_fills_the_device_once(batch: int, channels: int, sites: int) -> None:
    x = torch.empty(batch, sites, channels, device="meta").permute(0, 2, 1)
    how = op.plan(x, 50, True, 132)
    parts = -(-sites // how.length)
    assert parts <= 8
    assert how.length % 8 == 0
    assert how.grid == how.tiles * how.slices
    work = how.tiles * batch * parts  # of a warp
    assert how.slices * 8 <= batch * parts + 7
    assert how.grid <= max(2 * 132, how.tiles)
    assert how.grid * 8 >= min(work, 132 * 8)


def test_layers_without_positions_are_read_as_sectors_of_channels(kernel) -> None:
    x = values(30, 20, 1, "normal", 0)
    assert op.plan(x, 3, False, 132).defines["ROWS"] == "0"
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
    monkeypatch.setattr(op._cuda, "shared_memory_limit", lambda device: 100_000)
    monkeypatch.setattr(op._cuda, "processors", lambda device: 132)
    x = torch.zeros(2, 3, 4)
    assert op.unsupported_reason(x, 100, True) is None
    assert op.unsupported_reason(torch.zeros(0, 3, 4), 100, True) is None
    assert "float64" in op.unsupported_reason(x.double(), 100, True)
    assert "need" in op.unsupported_reason(x, 10_000, False)
    assert "more than" in op.unsupported_reason(x, 100_000, False)
    assert "31 bits" in op.unsupported_reason(torch.zeros(1).expand(1 << 16, 1, 1 << 15), 10, True)


def on_gpu(x, ids, top, bottom, moments, per_image: bool) -> None:
    """The real kernel, as if it worked in place on tensors of the CPU."""
    parts = top, bottom, moments
    there = [type(part)(*(y.cuda() for y in part)) for part in parts]
    maps = x.cuda()
    assert maps.stride() == x.stride()
    found = op.survey(
        maps, ids.cuda(), *there[:2], moments=there[2],
        sites_per_group=x.shape[2] if per_image else 1, fresh=True, backend="cuda",
    )  # fmt: skip
    for part, got in zip(parts, found, strict=True):
        for to, y in zip(part, got, strict=True):
            to.copy_(y)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", list(_cuda.FORMATS))
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("per_image", [False, True])
@pytest.mark.parametrize("kind", ["ties", "broken", "constant", "subnormal", "zeros"])
def test_cuda_has_the_buffers_of_the_cpu(
    kind: str, per_image: bool, channels_last: bool, dtype: torch.dtype
) -> None:
    """Every field, batch after batch; constant channels tie at more sites than are sorted."""
    first, second = (values(64, 100, 49, kind, seed).to(dtype) for seed in range(2))
    if kind == "subnormal":
        scale = {torch.float32: 1e-44, torch.bfloat16: 1e-39, torch.float16: 1e-6}[dtype]
        first, second = ((x.float() * scale).to(dtype) for x in (first, second))
        assert 0 < first.float().abs().max() < torch.finfo(dtype).tiny
    assert first[:, 0].numel() > op._CAPACITY
    assert op.plan(first, 20, per_image, op._cuda.processors(torch.device("cuda"))).slices > 1
    check(on_gpu, [laid_out(x, channels_last) for x in (first, second)], 20, 10, per_image)
