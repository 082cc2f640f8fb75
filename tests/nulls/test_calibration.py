"""P-values of S and Q on data from each null's own model: uniform where the null is exact.

The quick version looks at few channels; the long one at enough that 7 % rejections at 5 % would
fail (``test_the_long_version_would_notice_seven_percent``). What is not exact is shown with the
rate it has, not hidden. The D-nulls are in ``test_calibration_of_texts``.
"""

from dataclasses import replace

import pytest
import torch

from psi_engine.config import ScoreConfig
from psi_engine.nulls.exact_moments import exact_moments
from psi_engine.nulls.neighborhood import (
    SETS_PER_REPLICATE,
    neighborhood_s,
    neighbour_sets,
)
from psi_engine.nulls.permutation import permutation
from psi_engine.nulls.pool import clarity_p, pool_s, random_sets
from psi_engine.nulls.rotation import rotation
from psi_engine.nulls.rotation_samples import rotation_samples, rotation_tangent
from psi_engine.scores.score import score
from psi_engine.statistics import calibrate
from tests.nulls.calibration import (
    OWN,
    SHARED,
    assert_super_uniform,
    assert_uniform,
    power,
    rate,
    seen_ties,
)
from tests.nulls.call import make_batch, make_call, normal

POOL = normal(7, 40, 32).repeat_interleave(30, 0) + normal(8, 1200, 32)
FAST = {"k_max": 3}


@pytest.mark.parametrize(("sizes", "shared"), [(SHARED, True), (OWN, False)])
def test_the_long_version_would_notice_seven_percent(sizes, shared):
    assert power(*sizes[1].values, shared=shared) > 0.95


@pytest.mark.parametrize(("channels", "replicates"), SHARED)
def test_pool_on_random_sets(channels, replicates):
    drawn = random_sets(30, make_call(POOL, replicates=channels, seed=5))
    call = make_call(POOL, replicates=replicates)
    batch = make_batch(POOL[drawn], call)
    for p in (pool_s(batch, call).p, clarity_p(batch, call)):
        assert_super_uniform(p, replicates, shared=True)
        assert_uniform(p, replicates, shared=True)


@pytest.mark.parametrize(("channels", "replicates"), SHARED)
def test_neighborhood_on_neighbourhoods(channels, replicates):
    drawn = neighbour_sets(30, make_call(POOL, replicates=channels // SETS_PER_REPLICATE, seed=5))
    call = make_call(POOL, replicates=replicates // SETS_PER_REPLICATE)
    sets = SETS_PER_REPLICATE * call.config.replicates
    p = neighborhood_s(make_batch(POOL[drawn], call), call).p
    assert_super_uniform(p, sets, shared=True)
    assert_uniform(p, sets, shared=True)


@pytest.mark.parametrize(("channels", "replicates"), SHARED)
def test_rotation_on_uniform_directions(channels, replicates):
    call = make_call(replicates=replicates)
    p = rotation(make_batch(normal(1, channels, 20, 12), call), call).p
    assert_super_uniform(p, replicates, shared=True)
    assert_uniform(p, replicates, shared=True)


def long_modes(channels, n, dim=8):
    """One Gaussian mode per channel, wider one way than another, about a middle of its own."""
    return normal(11, channels, n, dim) @ normal(15, dim, dim) / dim**0.5 + normal(
        12, channels, 1, dim
    )


@pytest.mark.parametrize(("channels", "replicates"), OWN)
@pytest.mark.parametrize("dim", [8, 16], ids=["fewer-dims", "more-dims"])
def test_rotation_samples_on_rows_rotated_before_they_are_normalised(dim, channels, replicates):
    """Langsrud's test proper: Gaussian rows of any mean and covariance, lengths kept."""
    p = []
    for seed, z in enumerate(
        long_modes(channels, 12, dim).split(400)
    ):  # other banks, other channels
        call = make_call(replicates=replicates, seed=seed, **FAST)
        batch = make_batch(z, call)
        raw = replace(batch, units=z, grams=z @ z.mT)
        p.append(rotation_samples(raw, call).p)
    assert_super_uniform(torch.cat(p), replicates, shared=False)
    assert_uniform(torch.cat(p), replicates, shared=False)


@pytest.mark.parametrize(("channels", "replicates"), OWN)
@pytest.mark.parametrize("labels", [2, 5, 60])
def test_permutation_on_labels_that_mean_nothing(labels, channels, replicates, monkeypatch):
    """NMI of few patches takes few values: super-uniform as it is, uniform once ties are spread."""
    call = make_call(replicates=replicates, **FAST)
    generator = torch.Generator().manual_seed(labels)
    drawn = torch.randint(0, labels, (channels, 14), generator=generator)
    batch = make_batch(normal(3, channels, 14, 6), call, drawn)
    result, equal = seen_ties(permutation, batch, call, monkeypatch)
    assert_super_uniform(result.p, replicates, shared=False)
    assert_uniform(result.p, replicates, shared=False, equal=equal)
    assert float(equal.double().mean()) > 1  # else nothing was spread


def test_exact_scores_of_shuffled_labels_have_mean_0_and_variance_1():
    """Z needs no draws, so two are enough; the p of the null still comes from permutations."""
    call = make_call(replicates=2, **FAST)
    generator = torch.Generator().manual_seed(4)
    channels, n = 4000, 24
    labels = torch.randint(0, 6, (channels, n), generator=generator) ** 2 // 4
    labels[::3, :9] = -1  # unknown patches are not shuffled
    batch = make_batch(normal(5, channels, n, 6), call, labels)
    null = exact_moments(batch, call)
    z = calibrate(batch.q, null.mean, null.std).z
    known = null.std > 0
    assert float(known.double().mean()) > 0.99
    z = z[known]
    error = len(z) ** -0.5
    assert abs(float(z.mean())) < 3.3 * error
    fourth = float((z**4).mean())
    assert abs(float((z**2).mean()) - 1) < 3.3 * (fourth - 1) ** 0.5 * error


def test_rotation_shared_leaves_one_half_and_warns():
    config = ScoreConfig(s_null="rotation-shared", replicates=10)
    two = normal(3, 30, 20, 8) + 9 * (torch.arange(20) % 2)[:, None] * normal(4, 30, 1, 8)
    got = score(two, config=config)
    assert float(got.s.min()) > 0.3  # plain clusters
    assert (got.s_hat == 0.5).all()
    assert (got.s_z == 0).all()
    assert (got.s_p == 1).all()
    assert any("'rotation-shared' is degenerate" in note for note in got.notes)


def rejections(null, z):
    """Rate at 5 % among the channels that are not refused."""
    call = make_call(replicates=99)
    p = null(make_batch(z, call), call).p
    return rate(p[~torch.isnan(p)])


@pytest.mark.slow
def test_known_exceptions_of_rotation_keep_their_rates():
    """One Gaussian mode, 50 patches of 8 dimensions made unit, 300 channels, 99 draws.

    Normalising breaks ``rotation-samples``: 7 % where the mode is round, 55 % where it is oblong.
    The tangent plane mends it: 8 % where it is oblong, of the channels that have such a plane.
    """
    round_mode = normal(11, 300, 50, 8) + normal(12, 300, 1, 8)
    oblong = long_modes(300, 50)
    assert rejections(rotation_samples, round_mode) < 0.12
    assert rejections(rotation_samples, oblong) > 0.25
    assert rejections(rotation_tangent, oblong) < 0.12


@pytest.mark.slow
def test_two_modes_are_found():
    side = (torch.arange(50) % 2).double()[None, :, None] * 2 - 1
    direction = normal(14, 300, 1, 64)
    two = normal(11, 300, 50, 64) + 2 * normal(12, 300, 1, 64) + 0.6 * side * direction
    assert rejections(rotation_tangent, two) > 0.9
