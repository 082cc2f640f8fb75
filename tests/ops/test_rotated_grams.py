import numpy as np
import pytest
import torch

from psi_engine.errors import InputError
from psi_engine.nulls.draws import rotations_about_ones
from psi_engine.ops.rotated_grams import PRODUCT_GRID, ROTATION_GRID, on_grid, rotated_grams
from tests.nulls.call import normal


def problem(channels=5, m=7, n=10, shift=0.0):
    """Products of rows, or of what their tangent plane adds to one."""
    rotations = on_grid(rotations_about_ones(torch.arange(m), n), ROTATION_GRID)
    rows = normal(0, channels, n, 12) / 12
    products = rows @ rows.mT
    scale = 2.0 ** torch.arange(channels, dtype=torch.float64)
    products /= products.flatten(1).norm(dim=1)[:, None, None] * 1.01
    return rotations, on_grid(products, PRODUCT_GRID), scale, shift


@pytest.mark.parametrize("shift", [0.0, 1.0])
@pytest.mark.parametrize("backend", ["torch", "numba"])
def test_they_are_the_cosines_of_rotated_rows(shift, backend):
    rotations, products, scale, _ = problem()
    got = rotated_grams(rotations, products, scale, shift, backend=backend)
    assert got.shape == (5, 7, 10, 10)
    for c in range(5):
        for r in range(7):
            q = rotations[r].numpy()
            turned = q @ (products[c].numpy() * float(scale[c])) @ q.T + shift
            length = np.sqrt(np.diag(turned))
            assert np.abs(got[c, r].numpy() - turned / np.outer(length, length)).max() < 2e-6


@pytest.mark.parametrize("shift", [0.0, 1.0])
@pytest.mark.parametrize("n", [4, 10, 70])
def test_neither_backend_nor_company_changes_a_bit(shift, n, monkeypatch):
    arguments = problem(n=n, shift=shift)
    want = rotated_grams(*arguments, backend="torch")
    assert torch.equal(rotated_grams(*arguments, backend="numba"), want)
    rotations, products, scale, _ = arguments
    alone = rotated_grams(rotations[3:4], products[2:3], scale[2:3], shift, backend="numba")
    assert torch.equal(alone[0, 0], want[2, 3])
    for at_once in (1, 3, 9):
        monkeypatch.setattr("psi_engine.ops.rotated_grams.near", lambda *_, a=at_once: a)
        assert torch.equal(rotated_grams(*arguments, backend="numba"), want)


def test_a_row_without_length_gets_finite_cosines():
    """Products of rows that are all zero."""
    rotations, products, scale, _ = problem()
    for backend in ("torch", "numba"):
        got = rotated_grams(rotations, 0 * products, scale, 0.0, backend=backend)
        assert torch.equal(got, torch.eye(10).expand_as(got))


def test_bad_shapes_are_refused():
    rotations, products, scale, _ = problem()
    with pytest.raises(InputError, match="rotations and products do not fit"):
        rotated_grams(rotations, products[:, :4, :4], scale, 0.0)
    with pytest.raises(InputError, match="scale does not fit"):
        rotated_grams(rotations, products, scale[:2], 0.0)
