import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from psi_engine.ops import exact
from psi_engine.ops.exact import (
    cosines,
    fold_mean,
    fold_sum,
    gram,
    quantise,
    row_keys,
    set_keys,
    unit_rows,
)


@pytest.mark.parametrize("size", [0, 1, 2, 3, 7, 50, 513])
def test_fold_sum_adds_everything_once(size):
    x = torch.arange(1, 3 * size + 1, dtype=torch.float64).reshape(3, size)
    assert torch.equal(fold_sum(x), x.sum(-1))


def test_fold_sum_bits_do_not_depend_on_what_stands_beside():
    x = torch.randn(1000, 513, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    whole = fold_mean(x)
    assert torch.equal(whole[:1], fold_mean(x[:1]))
    assert torch.equal(whole.flip(0), fold_mean(x.flip(0)))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_unit_rows_are_unit_rows(dtype):
    x = torch.randn(20, 33, generator=torch.Generator().manual_seed(1)).to(dtype)
    want = x.double().numpy() / np.linalg.norm(x.double().numpy(), axis=1, keepdims=True)
    assert np.abs(unit_rows(x).rows.numpy() - want).max() <= 2.0**-25


@pytest.mark.parametrize("scale", [1e-300, 1e-30, 1.0, 1e200])
def test_unit_rows_do_not_see_the_scale(scale):
    x = torch.randn(4, 16, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    rows = unit_rows(x * scale).rows
    assert torch.allclose(rows, unit_rows(x).rows, atol=2.0**-24, rtol=0)
    assert torch.equal(unit_rows(x * 2.0**-900).rows, unit_rows(x).rows)


@pytest.mark.parametrize("dim", [1, 2, 3, 33, 512])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_loops_on_the_cpu_have_the_bits_of_tensor_operations(dtype, dim):
    x = torch.randn(40, dim, generator=torch.Generator().manual_seed(5)).to(dtype)
    x[1], x[2], x[3, 0], x[4, 0], x[5, -1] = 0.0, -0.0, float("nan"), -float("inf"), float("inf")
    x[6], x[7] = torch.finfo(dtype).smallest_normal / 2, torch.finfo(dtype).max
    x[8] *= torch.finfo(dtype).tiny
    x[9:12, 0] = x[9:12].abs().amax(1)  # ties for the largest
    for got, want in zip(unit_rows(x), exact._unit(x), strict=True):
        assert got.dtype == want.dtype
        assert got.numpy().tobytes() == want.numpy().tobytes()


def test_no_rows_and_rows_of_any_strides():
    assert unit_rows(torch.empty(0, 3)).rows.shape == (0, 3)
    x = torch.randn(6, 5, 4, generator=torch.Generator().manual_seed(6))
    assert torch.equal(unit_rows(x.mT).rows, unit_rows(x.mT.contiguous()).rows)


def test_broken_rows_are_named_and_zero():
    x = torch.ones(5, 3)
    x[1, 1], x[2, 0], x[3] = float("nan"), float("inf"), 0.0
    x[4, 2] = -float("inf")
    got = unit_rows(x)
    assert got.finite.tolist() == [True, False, False, True, False]
    assert got.nonzero.tolist() == [True, False, False, False, False]
    assert not got.rows[1:].any()


def test_grams_are_exact_cosines_whatever_the_batch():
    z = torch.randn(40, 30, 512, generator=torch.Generator().manual_seed(3))
    units = unit_rows(z).rows
    whole = gram(units)
    x = z.double().numpy() / np.linalg.norm(z.double().numpy(), axis=2, keepdims=True)
    assert np.abs(whole.numpy() - x @ x.transpose(0, 2, 1)).max() < 2e-7
    assert torch.equal(whole, whole.mT)
    assert (whole.diagonal(dim1=1, dim2=2) == 1).all()
    for c in (0, 17, 39):
        assert torch.equal(whole[c], gram(units[c : c + 1])[0])
    order = torch.randperm(512, generator=torch.Generator().manual_seed(4))
    assert torch.equal(whole, gram(units[:, :, order]))  # a different order of addition


def test_cosines_do_not_depend_on_the_order_of_dimensions():
    generator = torch.Generator().manual_seed(5)
    a, b = (unit_rows(torch.randn(n, 300, generator=generator)).rows for n in (9, 400))
    order = torch.randperm(300, generator=generator)
    assert torch.equal(cosines(a, b), cosines(a[:, order], b[:, order]))
    assert torch.equal(cosines(a, b)[3:4], cosines(a[3:4], b))


@given(st.lists(st.floats(-1, 1), min_size=1, max_size=20))
@settings(max_examples=50, deadline=None)
def test_quantise_rounds_to_the_grid(values):
    x = torch.tensor(values, dtype=torch.float64)
    q = quantise(x)
    assert torch.equal(q.double() * 2**24, (q.double() * 2**24).round())
    assert float((q.double() - x).abs().max()) <= 2.0**-25


def test_keys_tell_rows_apart_and_equal_rows_together():
    units = unit_rows(torch.randn(2000, 64, generator=torch.Generator().manual_seed(6))).rows
    nudged = units.clone()
    nudged[:, 5] += 2.0**-24  # the least change there is
    keys = torch.cat([row_keys(units), row_keys(nudged)])
    assert len(torch.unique(keys)) == 4000
    assert torch.equal(row_keys(units)[7:8], row_keys(units[7:8]))


def test_channel_keys_see_order_and_mask():
    keys = row_keys(unit_rows(torch.randn(6, 8, generator=torch.Generator().manual_seed(7))).rows)[
        None
    ]
    mask = torch.ones(1, 6, dtype=torch.bool)
    less = mask.clone()
    less[0, 5] = False
    found = {int(set_keys(k, m)) for k, m in ((keys, mask), (keys.flip(1), mask), (keys, less))}
    assert len(found) == 3
