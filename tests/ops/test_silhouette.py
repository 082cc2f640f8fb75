from __future__ import annotations

import numpy as np
import pytest
import torch

from psi_engine.errors import DeviceError, InputError
from psi_engine.ops import _cuda
from psi_engine.ops import silhouette as op
from psi_engine.ops.silhouette import silhouette
from tests.reference.silhouette import silhouette as reference

BACKENDS = ("torch", "numba")


def unit_rows(n: int, patches: int, dim: int = 16, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(n, patches, dim, generator=generator, dtype=torch.float64)
    return torch.nn.functional.normalize(z, dim=-1)


def random_labels(n: int, patches: int, k: int) -> torch.Tensor:
    return torch.randint(0, k, (n, patches), generator=torch.Generator().manual_seed(1))


def against_reference(grams: torch.Tensor, labels: torch.Tensor, atol: float = 1e-8) -> None:
    results = [silhouette(grams, labels, backend=backend) for backend in BACKENDS]
    torch.testing.assert_close(*results, rtol=0, atol=0, equal_nan=True)
    for i in range(len(labels)):
        want = reference(grams[i].double().numpy(), labels[i].numpy())
        np.testing.assert_allclose(results[0][i].numpy(), want, rtol=0, atol=atol)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("patches", "k"), [(4, 2), (5, 4), (50, 5), (120, 9)])
def test_agrees_with_the_reference(dtype: torch.dtype, patches: int, k: int) -> None:
    z = unit_rows(3, patches)
    against_reference((z @ z.mT).to(dtype), random_labels(3, patches, k))


def test_agrees_with_scikit_learn() -> None:
    from sklearn.metrics import silhouette_samples

    z, labels = unit_rows(5, 50), random_labels(5, 50, 4)
    got = silhouette(z @ z.mT, labels)
    for i in range(5):
        want = silhouette_samples(z[i].numpy(), labels[i].numpy(), metric="cosine")
        np.testing.assert_allclose(got[i].numpy(), want, rtol=0, atol=1e-8)


def test_masked_patches_count_nowhere() -> None:
    z, labels = unit_rows(4, 30), random_labels(4, 30, 3)
    mask = torch.rand(4, 30, generator=torch.Generator().manual_seed(2)) > 0.3
    grams = torch.where(mask[:, :, None] & mask[:, None, :], z @ z.mT, torch.nan)
    for backend in BACKENDS:
        got = silhouette(grams, labels, mask=mask, backend=backend)
        assert torch.equal(got.isnan(), ~mask)
        for i in range(4):
            keep = mask[i]
            want = reference((z[i] @ z[i].mT)[keep][:, keep].numpy(), labels[i, keep].numpy())
            np.testing.assert_allclose(got[i, keep].numpy(), want, rtol=0, atol=1e-8)


@pytest.mark.parametrize(
    "labels",
    [
        pytest.param([0, 1, 2, 3, 4, 4], id="singletons"),
        pytest.param([0, 0, 0, 0, 0, 0], id="one-cluster"),
        pytest.param([0, 0, 7, 7, 0, 7], id="gap-in-numbers"),
        pytest.param([-1, -1, 0, 1, -1, -1], id="two-left"),
        pytest.param([-1, -1, -1, -1, -1, -1], id="none-left"),
    ],
)
def test_degenerate_labels(labels: list[int]) -> None:
    z = unit_rows(1, 6)
    against_reference(z @ z.mT, torch.tensor([labels]))


def test_duplicates_score_zero_even_when_rounding_tells_them_apart() -> None:
    noise = torch.rand(1, 8, 8, generator=torch.Generator().manual_seed(0)) * 2e-7
    labels = torch.arange(8)[None] % 3
    for backend in BACKENDS:
        assert silhouette(1 - noise, labels, backend=backend).eq(0).all()
        assert silhouette(torch.eye(8)[None], labels, backend=backend).eq(0).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_patch_order_and_cluster_names_change_no_bit(backend: str) -> None:
    z, labels = unit_rows(3, 40).float(), random_labels(3, 40, 4)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(3))
    names = torch.tensor([2, 0, 3, 1])
    grams = z @ z.mT
    plain = silhouette(grams, labels, backend=backend)
    shuffled = silhouette(grams[:, order][:, :, order], names[labels][:, order], backend=backend)
    assert torch.equal(plain[:, order], shuffled)


def test_chunks_change_nothing() -> None:
    z, labels = unit_rows(9, 20), random_labels(9, 20, 3)
    whole = silhouette(z @ z.mT, labels, backend="torch")
    assert torch.equal(whole, silhouette(z @ z.mT, labels, backend="torch", memory=1))


@pytest.mark.parametrize("backend", BACKENDS)
def test_entries_that_are_no_cosines_are_refused(backend: str) -> None:
    grams = torch.eye(5)[None].clone()
    grams[0, 1, 2] = torch.nan
    with pytest.raises(InputError, match="cosines of unit rows"):
        silhouette(grams, random_labels(1, 5, 2), backend=backend)


@pytest.mark.parametrize(
    "labels", [torch.zeros(2, 4, dtype=torch.int64), torch.zeros(2, 5), torch.zeros(5).long()]
)
def test_labels_that_do_not_fit_are_refused(labels: torch.Tensor) -> None:
    with pytest.raises(InputError, match="assignments do not fit grams"):
        silhouette(torch.eye(5).expand(2, 5, 5), labels)


def test_cuda_backend_on_the_cpu_is_refused() -> None:
    with pytest.raises(DeviceError, match="data are on cpu"):
        silhouette(torch.eye(5)[None], random_labels(1, 5, 2), backend="cuda")


def test_kernel_says_why_it_cannot(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_cuda, "shared_memory_limit", lambda device: 48 << 10)
    assert op.unsupported_reason(torch.eye(50)[None], 5) is None
    assert "float16" in (op.unsupported_reason(torch.eye(50)[None].half(), 5) or "")
    assert "100 clusters" in (op.unsupported_reason(torch.eye(200)[None], 100) or "")


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("n", "patches", "k"), [(1, 4, 2), (300, 50, 5), (3, 237, 5), (2, 500, 7)])
def test_kernel_gives_the_bits_of_torch(dtype: torch.dtype, n: int, patches: int, k: int) -> None:
    z, labels = unit_rows(n, patches), random_labels(n, patches, k)
    mask = torch.rand(n, patches, generator=torch.Generator().manual_seed(4)) > 0.2
    grams = (z @ z.mT).to(dtype)
    want = silhouette(grams, labels, mask=mask, backend="torch")
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        got = silhouette(grams.cuda(), labels.cuda(), mask=mask.cuda(), backend="cuda")
    stream.synchronize()
    torch.testing.assert_close(got.cpu(), want, rtol=0, atol=0, equal_nan=True)


@pytest.mark.gpu
def test_kernel_refuses_what_is_no_cosine() -> None:
    grams = torch.eye(5, device="cuda")[None].clone()
    grams[0, 1, 2] = torch.nan
    with pytest.raises(InputError, match="cosines of unit rows"):
        silhouette(grams, random_labels(1, 5, 2).cuda(), backend="cuda")


@pytest.mark.gpu
def test_kernel_named_explicitly_never_falls_back() -> None:
    grams = torch.eye(5, device="cuda", dtype=torch.float16)[None]
    labels = random_labels(1, 5, 2).cuda()
    with pytest.raises(DeviceError, match="silhouette kernel"):
        silhouette(grams, labels, backend="cuda")
    assert silhouette(grams, labels, backend="auto").eq(0).all()
