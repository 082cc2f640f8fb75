"""The rotation nulls of channels with more patches than dimensions."""

import numpy as np
import pytest
import torch

from psi_engine.nulls import rotated_rows
from psi_engine.nulls.rotation_samples import _compare, rotation_samples, rotation_tangent
from psi_engine.statistics import summarise
from tests.nulls.call import make_batch, make_call, normal

WIDE = torch.tensor([2.0, 0, 0, 0, 0])


def rows_of(batch):
    return batch.units.to(torch.float64)


def test_frames_are_orthonormal_and_orthogonal_to_ones():
    frames = rotated_rows._frames(30, 5, torch.arange(4), make_call())
    assert frames.shape == (4, 30, 5)
    assert torch.allclose(frames.mT @ frames, torch.eye(5, dtype=torch.float64), atol=1e-6)
    assert torch.allclose(frames.sum(1), torch.zeros(4, 5, dtype=torch.float64), atol=1e-6)
    alone = rotated_rows._frames(30, 5, torch.tensor([2]), make_call())
    assert torch.equal(alone[0], frames[2])


def test_frames_are_uniform():
    """Moments of an entry of a Haar frame in the complement of 1: 0, 1/n and (Weingarten)."""
    n, count = 8, 4000
    frames = rotated_rows._frames(n, 2, torch.arange(count), make_call())
    entry = frames[:, 3, 1]
    assert abs(float(entry.mean())) < 4 / (n * count) ** 0.5
    assert float((entry**2).mean()) == pytest.approx(1 / n, rel=0.1)
    # a unit vector v in R^(n−1): E[v⁴] = 3/((n−1)(n+1)), times the ((n−1)/n)² of the projection
    fourth = 3 * (n - 1) / (n**2 * (n + 1))
    assert float((entry**4).mean()) == pytest.approx(fourth, rel=0.15)


def test_a_replicate_has_the_mean_and_covariance_of_its_rows_before_it_is_normalised(monkeypatch):
    """And its Gram matrix is that of the rotated features."""
    call = make_call(replicates=3)
    batch = make_batch(normal(0, 2, 12, 5) + WIDE, call)
    rows, seen = rows_of(batch), []

    def keep(x):
        seen.append(x.clone())
        return unit_rows(x)

    unit_rows = rotated_rows.unit_rows
    monkeypatch.setattr(rotated_rows, "unit_rows", keep)
    grams = []
    separability = call.separability
    monkeypatch.setattr(call, "separability", lambda g, k: grams.append(g) or separability(g, k))
    rotated_rows.rotated_scores(batch, call, rows)
    (rotated,), (found,) = seen, grams
    for c in range(2):
        want = np.cov(rows[c].numpy().T)
        for m in range(3):
            got = rotated[c, m].numpy()
            assert np.allclose(got.mean(0), rows[c].mean(0).numpy(), atol=1e-6)
            assert np.allclose(np.cov(got.T), want, atol=1e-6)
            unit = got / np.linalg.norm(got, axis=1, keepdims=True)
            assert np.allclose(found[c * 3 + m].numpy(), unit @ unit.T, atol=1e-6)
    assert not torch.allclose(rotated[0, 0], rotated[0, 1], atol=0.1)


@pytest.mark.parametrize("null", ["rotation-samples", "rotation-tangent"])
def test_it_is_the_law_that_matrices_give_in_gram_space(null):
    """Two samples of 1500 from one law: means within 4 standard errors, sds within 12 %."""
    replicates, far = 1500, WIDE * 3 if null == "rotation-tangent" else WIDE
    call = make_call(replicates=replicates, s_null=null)
    batch = make_batch(normal(1, 2, 16, 5) + far, call)
    if null == "rotation-samples":
        got = rotation_samples(batch, call)
        want = _compare(batch, call, batch.grams.to(torch.float64), 0.0)
    else:
        got = rotation_tangent(batch, call)
        rows = rows_of(batch)
        middle = torch.nn.functional.normalize(rows.mean(1), dim=-1)
        flat = rows / (rows @ middle[:, :, None]) - middle[:, None]
        want = _compare(batch, call, flat @ flat.mT, 1.0)
    error = 4 * want.std * (2 / replicates) ** 0.5
    assert ((got.mean - want.mean).abs() < error).all()
    assert ((got.std / want.std - 1).abs() < 0.12).all()


@pytest.mark.parametrize("null", [rotation_samples, rotation_tangent])
def test_neither_memory_nor_company_changes_a_bit(null):
    z = normal(2, 5, 12, 4) + torch.tensor([3.0, 0, 0, 0])
    want = null(make_batch(z, make_call(replicates=30)), make_call(replicates=30))
    for memory in (1 << 12, 1 << 17):
        call = make_call(replicates=30, memory=memory)
        got = null(make_batch(z, call), call)
        assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))
    call = make_call(replicates=30)
    batch = make_batch(z, call)
    batch.ids, batch.units, batch.grams, batch.s = (
        x[3:4] for x in (batch.ids, batch.units, batch.grams, batch.s)
    )
    alone = null(batch, call)
    assert all(torch.equal(a, b[3:4]) for a, b in zip(alone, want, strict=True))


def test_channels_with_equal_rows_get_different_replicates():
    z = normal(3, 1, 12, 4).expand(2, 12, 4)
    call = make_call(replicates=20)
    batch = make_batch(z, call)
    draws = rotated_rows.rotated_scores(batch, call, rows_of(batch))
    assert not torch.equal(draws[0], draws[1])
    assert summarise(batch.s, draws).mean[0] == pytest.approx(float(draws[1].mean()), abs=0.1)


def test_rows_that_span_fewer_dimensions_are_rotated_too():
    z = normal(4, 1, 12, 4)
    z[..., 2:] = 0.0
    call = make_call(replicates=10)
    batch = make_batch(z, call)
    draws = rotated_rows.rotated_scores(batch, call, rows_of(batch))
    assert torch.isfinite(draws).all()
