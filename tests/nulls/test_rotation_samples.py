import numpy as np
import pytest
import torch

from psi_engine.nulls.draws import rotations_about_ones
from psi_engine.nulls.rotation_samples import rotation_samples, rotation_shared, rotation_tangent
from psi_engine.ops import separability
from psi_engine.ops.random import permutations
from tests.nulls.call import make_batch, make_call, normal
from tests.reference import nulls as reference


def capture_grams(monkeypatch):
    seen = []
    scored = separability.separability

    def spy(grams, keys, **options):
        seen.append(grams)
        return scored(grams, keys, **options)

    monkeypatch.setattr(separability, "separability", spy)
    return seen


@pytest.mark.parametrize(
    ("null", "rotate"),
    [
        (rotation_samples, reference.rotated_features),
        (rotation_tangent, reference.rotated_in_tangent),
    ],
)
@pytest.mark.parametrize(("dtype", "atol"), [(torch.float64, 1e-6), (torch.float32, 1e-5)])
def test_null_grams_equal_rotated_features(null, rotate, dtype, atol, monkeypatch):
    call = make_call(replicates=6)
    z = (normal(0, 3, 9, 12) * 0.5 + normal(1, 12)).to(dtype)
    batch = make_batch(z, call)
    seen = capture_grams(monkeypatch)
    null(batch, call)
    (grams,) = seen
    grams = grams.unflatten(0, (3, 6))
    bank = rotations_about_ones(call.keys("null.s.bank", 9, torch.arange(6)), 9).numpy()
    order = permutations(call.keys("null.s.samples", batch.ids), 9).numpy()
    for c in range(3):
        rows = z[c].double().numpy()[order[c]]
        rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
        for r in range(6):
            turned = rotate(rows, bank[r])
            assert np.abs(grams[c, r].numpy() - turned @ turned.T).max() < atol


def test_shared_rotation_is_degenerate_and_says_so():
    call = make_call()
    batch = make_batch(normal(2, 5, 12, 6), call)
    got = rotation_shared(batch, call)
    assert torch.equal(got.mean, batch.s)
    assert not got.std.any()
    assert (got.p == 1).all()
    assert "degenerate" in call.notes[0]


def test_turning_all_rows_together_changes_no_score():
    """The theorem behind ``rotation-shared``, by computing it."""
    call = make_call()
    z = normal(3, 5, 12, 6)
    turn = torch.linalg.qr(normal(4, 6, 6)).Q
    a, b = make_batch(z, call), make_batch(z @ turn, call)
    assert torch.equal(a.assignments, b.assignments)
    assert torch.allclose(a.s, b.s, atol=1e-6)


def test_tangent_refuses_what_has_no_mean_direction():
    call = make_call(replicates=6)
    z = normal(5, 2, 9, 12) * 0.3 + normal(6, 12)
    z[1, 4] = -z[1, 4]
    got = rotation_tangent(make_batch(z, call), call)
    assert torch.isfinite(got.mean[0])
    assert all(torch.isnan(x[1]).all() for x in got)


def test_parts_of_the_replicates_do_not_matter():
    z = normal(7, 4, 10, 8)
    results = []
    for memory in (1 << 14, 1 << 18, 1 << 30):
        call = make_call(memory=memory, replicates=30)
        results.append(rotation_samples(make_batch(z, make_call()), call))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))
