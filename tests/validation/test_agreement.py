"""How far two scorings agree, and what moved them apart."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats

import psi_engine as psi
from psi_engine.types import Scores
from psi_engine.validation.agreement import (
    agreement,
    columns_of,
    explain,
    nested_correlation,
    reliability,
    spearman,
)

CHANNELS, PATCHES, DIM = 24, 12, 16


@pytest.fixture(scope="module")
def scores() -> Scores:
    """Channels of one to three modes with labels and texts, one of them broken."""
    generator = torch.Generator().manual_seed(0)
    label = torch.randint(0, 3, (CHANNELS, PATCHES), generator=generator)
    label[:8] = 0
    noise = torch.rand(CHANNELS, 1, 1, generator=generator) * torch.randn(
        CHANNELS, PATCHES, DIM, generator=generator
    )
    z = torch.eye(DIM)[label] + noise
    z[5] = torch.nan
    return psi.score(
        z, labels=label, text_embeddings=torch.eye(DIM)[:6], channel_ids=torch.arange(CHANNELS),
        pool=torch.randn(200, DIM, generator=generator),
        config=psi.ScoreConfig(replicates=50), device="cpu",
    )  # fmt: skip


def shuffled(scores: Scores, component: str) -> Scores:
    """The same scores with one component's z in another order, PSI made again by the book."""
    order = torch.randperm(CHANNELS, generator=torch.Generator().manual_seed(1))
    changed = replace(scores, **{f"{component}_z": getattr(scores, f"{component}_z")[order]})
    logs = [torch.nn.functional.logsigmoid(getattr(changed, f"{x}_z")) for x in "sqd"]
    return replace(changed, log_psi=logs[0] + logs[1] + logs[2])


def test_coefficients_are_scipys_and_intervals_hold_them(scores: Scores) -> None:
    one, other = columns_of(scores), columns_of(shuffled(scores, "d"))
    assert set(one) == {
        "log_psi", "log_psi_without_q", "s", "q", "d", "s_z", "q_z", "d_z"
    }  # fmt: skip
    for row in agreement(one, other, key=1, resamples=200):
        x, y = one[row["measure"]], other[row["measure"]]
        both = ~(np.isnan(x) | np.isnan(y))
        assert row["n"] == both.sum() < CHANNELS
        assert row["spearman"] == pytest.approx(stats.spearmanr(x[both], y[both]).statistic)
        assert row["spearman_low"] <= row["spearman"] <= row["spearman_high"]
        if row["measure"] == "log_psi":
            assert row["spearman_high"] - row["spearman_low"] > 0.05


def test_log_psi_without_q_is_that_of_the_other_two(scores: Scores) -> None:
    expected = np.log(scores.s_hat.numpy()) + np.log(scores.d_hat.numpy())
    found = columns_of(scores)["log_psi_without_q"]
    np.testing.assert_allclose(found, expected, rtol=1e-9)


@pytest.mark.parametrize("component", ["s", "q", "d"])
def test_the_component_that_moved_is_named(scores: Scores, component: str) -> None:
    found = explain(scores, shuffled(scores, component), same_patches=True)
    others = {"s", "q", "d"} - {component}
    assert [found[f"only_{x}"] for x in others] == [1.0, 1.0]
    assert found[f"only_{component}"] < 0.97
    assert found[f"without_{component}"] == 1.0
    assert found["same_k"] == 1.0
    assert found["clusters"] == pytest.approx(
        float((scores.n_clusters[~scores.log_psi.isnan()] > 0).double().mean())
    )
    assert found["n"] < CHANNELS


def test_channels_are_parted_by_their_number_of_clusters(scores: Scores) -> None:
    k = scores.n_clusters.clone()
    k[::2] += 1
    log_psi = scores.log_psi.clone()
    log_psi[::2] = -log_psi[::2]  # their order turned round
    found = explain(scores, replace(scores, n_clusters=k, log_psi=log_psi), same_patches=False)
    assert found["spearman_same_k"] == 1.0
    assert found["spearman_other_k"] == -1.0
    assert found["clusters"] is None
    there = ~scores.log_psi.isnan()
    assert found["same_k"] == pytest.approx(float((there[1::2]).sum() / there.sum()))


def test_spread_change_and_ceiling_are_those_of_log_psi(scores: Scores) -> None:
    x = scores.log_psi.numpy()
    x = x[~np.isnan(x)]
    found = explain(scores, replace(scores, log_psi=scores.log_psi - 0.25), same_patches=True)
    assert found["change"] == pytest.approx(0.25)
    assert found["spread"] == pytest.approx(stats.iqr(x))
    assert found["ceiling"] == 0
    assert explain(scores, scores, same_patches=True)["ceiling"] == pytest.approx(
        (np.exp(x) > 0.99).mean()
    )


def test_too_few_or_equal_values_have_no_coefficient() -> None:
    x = np.array([1.0, 2.0, 3.0, np.nan, 5.0])
    assert spearman(x, np.array([1.0, 2.0, np.nan, 4.0, 5.0])) is None
    assert spearman(x, np.zeros(5)) is None
    assert spearman(x, x) == 1.0


@pytest.mark.parametrize("true", [0.0, 0.5, 2.0])
def test_averages_over_patches_agree_as_foretold(true: float) -> None:
    """Real averages: halves of 25, and the first 40 of 50 against all."""
    rng = np.random.default_rng(0)
    channels = 40_000
    patches = true * rng.normal(size=(channels, 1)) + 10 * rng.normal(size=(channels, 50))
    first, second, most, all_of_them = (
        patches[:, part].mean(1) for part in (slice(25), slice(25, 50), slice(40), slice(50))
    )
    half = float(np.corrcoef(first, second)[0, 1])
    found = nested_correlation(half, 25, 40, 50)
    assert found == pytest.approx(np.corrcoef(most, all_of_them)[0, 1], abs=0.005)
    expected = true**2 / (true**2 + 100 / 50)
    assert reliability(half, 2) == pytest.approx(expected, abs=0.02)
