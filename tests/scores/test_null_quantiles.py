"""The shape of a null that a channel's scores carry: 41 quantiles of its draws."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from psi_engine.config import ScoreConfig
from psi_engine.distributed import World
from psi_engine.nulls import exact_moments, permutation, rotation_samples
from psi_engine.scores.score import score
from psi_engine.types import NullDraws
from tests.scores.test_score import COMBINATIONS, run

QUICK = ScoreConfig(replicates=40, restarts=5)
NAMES = [f"{x}_null_quantiles" for x in "sqd"]
ENDS = np.arange(41) / 40


def same(left, right, order=slice(None)):
    for name in NAMES:
        a, b = getattr(left, name)[order], getattr(right, name)
        assert torch.equal(a.nan_to_num(), b.nan_to_num()), name
        assert torch.equal(a.isnan(), b.isnan()), name


@pytest.mark.parametrize("config", COMBINATIONS, ids=lambda c: f"{c.s_null},{c.q_null},{c.d_null}")
def test_neither_memory_nor_order_nor_company_changes_a_quantile(world, config):
    mask = torch.ones(12, 20, dtype=torch.bool)
    mask[3, 15:] = False
    whole = run(world, config, mask=mask)
    same(whole, run(world, replace(config, memory=1 << 20), mask=mask))
    order = torch.randperm(12, generator=torch.Generator().manual_seed(1))
    same(whole, run(world, config, order, mask=mask[order]), order)
    for component, name in zip("sqd", NAMES, strict=True):
        values = getattr(whole, name)
        assert values.dtype == torch.float32
        assert values.shape == (12, 41)
        assert (values[whole.s.isfinite()].diff(dim=1) >= 0).all()
        p, observed = getattr(whole, component + "_p"), getattr(whole, component)
        replicates = whole.nulls[component].replicates
        # the least p says that no draw reached the channel, 1 that all did
        least = p < 1.5 / (replicates + 1)
        assert (values[least, -1] < observed[least]).all()
        assert (values[p == 1, 0] >= observed[p == 1] - 1e-6).all()


@pytest.mark.parametrize(
    ("component", "module", "changes"),
    [
        ("s", rotation_samples, {"s_null": "rotation-samples"}),
        ("q", permutation, {"q_null": "permutation"}),
        ("q", permutation, {"q_null": "exact"}),
    ],
    ids=str,
)
def test_quantiles_are_those_of_the_draws_that_p_counts(
    world, monkeypatch, component, module, changes
):
    seen = []
    original = module.summarise

    def watch(observed, draws):
        seen.append(draws.numpy().copy())
        return original(observed, draws)

    monkeypatch.setattr(module, "summarise", watch)
    got = run(world, replace(QUICK, **changes))
    want = np.quantile(np.concatenate(seen), ENDS, axis=1).T
    np.testing.assert_allclose(
        getattr(got, f"{component}_null_quantiles").numpy(), want, rtol=2.0**-22, atol=1e-9
    )
    assert exact_moments.permutation is permutation.permutation


def test_a_shared_null_is_the_same_for_all_and_its_median_lies_in_the_middle(world):
    got = run(world, replace(QUICK, replicates=500))
    assert (got.s_null_quantiles == got.s_null_quantiles[0]).all()
    for component in "sqd":
        median = getattr(got, f"{component}_null_quantiles")[:, 20]
        mean, std = (getattr(got, f"{component}_null_{x}") for x in ("mean", "std"))
        assert ((median - mean).abs() <= std).all()  # whatever the draws' law


def test_neighborhood_ranks_the_channel_among_its_quantiles_as_p_does(world):
    config = ScoreConfig(replicates=100, s_null="neighborhood", d_null="neighborhood")
    got = run(world, config)
    assert got.nulls["s"] == NullDraws("neighborhood", 400)
    for x in "sd":
        observed, p = getattr(got, x).numpy(), getattr(got, x + "_p").numpy()
        for c, values in enumerate(getattr(got, f"{x}_null_quantiles").numpy()):
            below = np.interp(observed[c], values, ENDS, left=0.0, right=1.0)
            assert 1 - below == pytest.approx(p[c], abs=1 / 40 + 2 / 401)


def test_rotation_shared_draws_the_observation_every_time(world):
    got = run(world, replace(QUICK, s_null="rotation-shared"))
    assert torch.equal(got.s_null_quantiles, got.s.float()[:, None].expand(-1, 41))


def test_what_was_not_compared_has_no_quantiles(world):
    got = run(world, QUICK, labels=None)
    assert got.q_null_quantiles is None
    assert set(got.nulls) == {"s", "d"}
    z = world.embeddings.clone()
    z[4] = torch.nan
    got = run(world, QUICK, embeddings=z)
    for name in NAMES:
        missing = getattr(got, name).isnan()
        assert missing[4].all()
        assert not missing[[c for c in range(12) if c != 4]].any()
    assert "s_null_quantiles" not in got.to_arrow().column_names


def test_a_tangent_null_that_is_refused_has_none(world):
    config = replace(QUICK, s_null="rotation-tangent")
    z = world.embeddings.clone()
    z[2, 0] = -z[2, 1:].mean(0)
    got = run(world, config, embeddings=z)
    assert got.status[2] == "failed"
    assert got.s_null_quantiles[2].isnan().all()
    assert not got.s_null_quantiles[1].isnan().any()


def test_the_null_that_took_anothers_place_is_named(world):
    given = {"unrelated_text_embeddings": None, "unrelated_concept_ids": None}
    fallen = run(world, replace(QUICK, d_null="unrelated-text"), **given)
    asked = run(world, replace(QUICK, d_null="text-shuffle"), **given)
    assert fallen.nulls["d"] == asked.nulls["d"] == NullDraws("text-shuffle", 40)
    assert torch.equal(fallen.d_z, asked.d_z)


def test_ranks_hand_each_other_their_quantiles(world):
    """Two ranks taken in turn: each hands over what a real exchange would carry."""
    handed = {}

    class Rank(World):
        def all_gather(self, value):
            handed[self.rank] = value
            return [handed.get(r, value) for r in range(self.size)]

    arguments = {"labels": world.labels, "text_embeddings": world.texts, "pool": world.pool}
    score(world.embeddings, **arguments, config=QUICK, world=Rank(0, 2))
    got = score(world.embeddings, **arguments, config=QUICK, world=Rank(1, 2))
    same(score(world.embeddings, **arguments, config=QUICK), got)
