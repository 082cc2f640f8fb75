"""Areas under curves equal scikit-learn's and loops; the bootstrap equals explicit resamples."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from psi_engine import detection
from psi_engine.detection import Areas, interval, rank_auroc, resample, weighted_areas
from tests.reference import detection as reference


def draw(seed: int, levels: int) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    high = random.integers(levels, size=23) / levels + 0.1 * (levels > 99)
    return high.astype(float), random.integers(levels, size=31) / levels


def one_score(high: np.ndarray, low: np.ndarray, *counts: np.ndarray) -> Areas:
    return Areas(*(area[0] for area in weighted_areas(high[None], low[None], *counts)))


@pytest.mark.parametrize("levels", [2, 5, 1000])
@pytest.mark.parametrize("seed", [0, 1])
def test_areas_equal_scikit_learn_and_loops(seed: int, levels: int) -> None:
    high, low = draw(seed, levels)
    areas = one_score(high, low, np.ones((23, 1)), np.ones((31, 1)))
    truth, values = np.repeat([1, 0], [23, 31]), np.concatenate([high, low])
    assert areas.auroc[0] == pytest.approx(roc_auc_score(truth, values), abs=1e-12)
    expected = average_precision_score(truth, values)
    assert areas.average_precision[0] == pytest.approx(expected, abs=1e-12)
    assert areas.auroc[0] == pytest.approx(reference.auroc(list(high), list(low)), abs=1e-12)
    loop = reference.average_precision(list(high), list(low))
    assert areas.average_precision[0] == pytest.approx(loop, abs=1e-12)
    assert rank_auroc(high, low) == pytest.approx(areas.auroc[0], abs=1e-12)


def test_each_resample_equals_the_loop_on_its_items() -> None:
    high, low = draw(3, 7)
    of_high, of_low = resample(1, 23, 20), resample(2, 31, 20)
    areas = one_score(high, low, of_high, of_low)
    for column in range(21):
        some = np.repeat(high, of_high[:, column].astype(int)).tolist()
        other = np.repeat(low, of_low[:, column].astype(int)).tolist()
        assert areas.auroc[column] == pytest.approx(reference.auroc(some, other), abs=1e-12)
        expected = reference.average_precision(some, other)
        assert areas.average_precision[column] == pytest.approx(expected, abs=1e-12)


def test_scores_judged_together_are_judged_as_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = [draw(seed, levels) for seed in range(3) for levels in (2, 1000)]
    high, low = (np.array(side) for side in zip(*pairs, strict=True))
    counts = resample(1, 23, 5), resample(2, 31, 5)
    together = weighted_areas(high, low, *counts)
    monkeypatch.setattr(detection, "_AT_ONCE", 1)
    apart = weighted_areas(high, low, *counts)
    for one, other in zip(together, apart, strict=True):
        assert one.shape == (6, 6)
        assert np.array_equal(one, other)


def test_resamples_start_with_the_sample_and_draw_evenly() -> None:
    counts = resample(5, 40, 3000)
    assert counts.shape == (40, 3001)
    assert (counts[:, 0] == 1).all()
    assert (counts.sum(0) == 40).all()
    assert np.array_equal(counts, resample(5, 40, 3000))
    assert not np.array_equal(counts, resample(6, 40, 3000))
    # the mean count of an item over 3000 resamples has a standard error of 0.018
    assert np.abs(counts[:, 1:].mean(1) - 1).max() < 5 * 0.018
    assert counts[:, 1:].var() == pytest.approx(39 / 40, abs=0.02)


def test_the_interval_covers_the_truth_as_often_as_it_says() -> None:
    # two normals one apart: AUROC = Φ(1/√2) = 0.760; 200 intervals at 95 % miss 10 ± 3.1
    missed = 0
    for trial in range(200):
        random = np.random.default_rng(trial)
        high, low = random.normal(1, 1, 60), random.normal(0, 1, 60)
        draws = one_score(high, low, resample(trial, 60, 200), resample(-trial - 1, 60, 200))
        lower, upper = interval(draws.auroc[1:])
        missed += not lower <= 0.7602 <= upper
    assert 2 <= missed <= 24


def test_a_missing_score_counts_against_the_measure() -> None:
    one = np.ones((2, 1))
    high, low = np.array([np.nan, 1.0]), np.array([0.0, np.nan])
    areas = one_score(high, low, one, one)
    assert areas.auroc[0] == 0.25  # only 1.0 above 0.0
    assert areas.average_precision[0] == pytest.approx((1 / 2 + 2 / 4) / 2)
