"""The logic of kernels/reservoir.cu, built for the CPU, against torch and the reference."""

from __future__ import annotations

import pytest
import torch

from psi_engine.errors import DeviceError, InputError
from psi_engine.ops import reservoir as op
from psi_engine.ops import topk
from psi_engine.ops.random import hash_keys, string_key
from tests.kernels.building import stand_ins
from tests.reference import mining as reference

SIGNATURE = (
    "const void* x, long long stride_b, long long stride_c, long long stride_s, "
    "const long long* image_ids, const long long* channel_keys, long long* keys, "
    "long long* kept, float* values, int batch, int channels, int sites, int k"
)
CALL = (
    "static_cast<const X_T*>(x), stride_b, stride_c, stride_s, image_ids, channel_keys, keys, "
    "kept, values, batch, channels, sites, k"
)


@pytest.fixture(scope="module")
def kernel(tmp_path_factory: pytest.TempPathFactory, watched: bool):
    """The launcher with the kernel built for the CPU, once per type; works in place."""
    parts = stand_ins({"reservoir": (SIGNATURE, CALL)}, tmp_path_factory, watched=watched)

    def call(*arguments) -> None:
        with pytest.MonkeyPatch.context() as patch:
            for name, part in parts.items():
                patch.setattr(op._cuda, name, part)
            op._launch(*arguments)

    return call


def buffer(channels: int, k: int) -> topk.Entries:
    return topk.empty(channels, k, torch.int64, "cpu")


def keys(channels: int, seed: int = 0) -> torch.Tensor:
    return hash_keys(seed, torch.arange(channels))


def values(batch: int, channels: int, sites: int, seed: int) -> torch.Tensor:
    """Some sites are not finite, some −0; a channel and an image have no finite one."""
    x = torch.randn(batch, channels, sites, generator=torch.Generator().manual_seed(seed))
    x[x > 1.5] = torch.nan
    x[x < -1.5] = -torch.inf
    x[x.abs() < 0.2] = -0.0
    x[:, 0] = torch.inf
    x[0] = torch.nan
    return x


def same(got: topk.Entries, want: topk.Entries) -> None:
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)
    assert not (torch.signbit(got.values) & (got.values == 0)).any()


def check(kernel, batches: list[torch.Tensor], k: int) -> None:
    """Batch after batch into the kernel's buffer and into torch's."""
    channels = batches[0].shape[1]
    got, want, start = buffer(channels, k), buffer(channels, k), 0
    for x in batches:
        ids = start + torch.arange(len(x)) * 2
        start = int(ids[-1]) + 1
        kernel(x, ids, got, keys(channels))
        want = op.reservoir(x, ids, want, keys(channels), fresh=True, backend="torch")
        same(got, want)


@pytest.mark.races
@pytest.mark.parametrize("k", [1, 5, 31, 32, 33, 70])
@pytest.mark.parametrize("batch", [1, 31, 33, 100])
def test_has_the_bits_of_torch(kernel, batch: int, k: int) -> None:
    """Buffers of one row of lanes and of several; 9 channels are two blocks and a part of one."""
    check(kernel, [values(batch, 9, 6, seed) for seed in range(4)], k)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_halves(kernel, dtype: torch.dtype) -> None:
    x = values(40, 3, 5, 0).to(dtype)
    x[1:4, 1] = torch.tensor(6e-8).to(dtype)  # subnormal in float16
    check(kernel, [x, values(40, 3, 5, 1).to(dtype)], 20)


def test_any_strides(kernel) -> None:
    wide = values(34, 11, 8, 0)
    maps = wide.permute(0, 2, 1).contiguous().permute(0, 2, 1)  # channels last
    for x in (wide, maps, maps[:, 1:7], maps[:, ::2], maps[:, :, ::2], wide[::2, :, ::3]):
        check(kernel, [x], 9)


def test_has_the_sites_of_the_reference(kernel) -> None:
    x, ids, grid = values(50, 4, 6, 2), list(range(3, 53)), (2, 3)
    got = buffer(4, 12)
    kernel(x, torch.tensor(ids), got, hash_keys(7, string_key("layer"), torch.arange(4)))
    maps = x.reshape(50, 4, *grid).double().numpy()
    want = reference.reservoir(maps, ids, 12, 7, "layer", list(range(4)))
    for row, entries in enumerate(want):
        sites = [image * 6 + u * grid[1] + v for _, image, u, v in entries]
        assert got.sites[row].tolist() == sites + [topk.NO_SITE] * (12 - len(sites))
        assert got.values[row, : len(sites)].tolist() == [value for value, *_ in entries]
    assert len(want[0]) == 0 < len(want[1])


def test_a_batch_that_the_kernel_does_not_take(kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch takes it, then the kernel goes on in the same buffer; named, it is refused."""
    monkeypatch.setattr(op, "resolve_backend", lambda backend, x: backend.replace("auto", "cuda"))
    x, channel_keys, ids = values(40, 3, 6, 0), keys(3), torch.arange(40)

    def begun(backend) -> topk.Entries:
        given = x.double(), ids, buffer(3, 8), channel_keys
        return op.reservoir(*given, fresh=True, backend=backend)

    got = begun("auto")
    kernel(x, ids.int() + 40, got, channel_keys)  # other integers count as they are
    same(got, op.reservoir(x, ids + 40, begun("torch"), channel_keys, fresh=True, backend="torch"))
    with pytest.raises(DeviceError, match="float64"):
        begun("cuda")


def test_what_the_kernel_would_read_wrongly_is_refused(kernel) -> None:
    x, wide = values(2, 3, 4, 0), topk.Entries(*(part[:, :2] for part in buffer(3, 4)))
    with pytest.raises(InputError, match=r"kept\.keys: not contiguous"):
        kernel(x, torch.arange(2), wide, keys(3))


@pytest.mark.parametrize("fresh", [True, False])
def test_a_named_backend_is_used_or_refused(fresh: bool) -> None:
    for backend, error in (("cuda", DeviceError), ("numba", InputError)):
        with pytest.raises(error):
            op.reservoir(
                values(2, 3, 4, 0), torch.arange(2), buffer(3, 2), keys(3),
                fresh=fresh, backend=backend,
            )  # fmt: skip


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", list(op._cuda.FORMATS))
@pytest.mark.parametrize("channels_last", [False, True])
def test_cuda_has_the_buffer_of_the_cpu(channels_last: bool, dtype: torch.dtype) -> None:
    def on_gpu(x, ids, kept, channel_keys) -> None:
        there = topk.Entries(*(part.cuda() for part in kept))
        found = op.reservoir(
            x.cuda(), ids.cuda(), there, channel_keys.cuda(), fresh=True, backend="cuda"
        )
        for part, new in zip(kept, found, strict=True):
            part.copy_(new)

    batches = [values(130, 100, 49, seed).to(dtype) for seed in range(3)]
    if channels_last:
        batches = [x.permute(0, 2, 1).contiguous().permute(0, 2, 1) for x in batches]
    check(on_gpu, batches, 50)
