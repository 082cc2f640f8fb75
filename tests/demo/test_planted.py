"""Planted units do what their kind says, and AUROC is what scikit-learn calls it."""

import numpy as np
import pyarrow as pa
import pytest
import torch
from sklearn.metrics import roc_auc_score

from psi_engine.demo.planted import (
    KINDS,
    PER_KIND,
    Planted,
    log_odds,
    planted_classes,
    planted_kinds,
)
from psi_engine.demo.truth import auroc
from psi_engine.demo.world import CLASSES
from psi_engine.detection import rank_auroc
from psi_engine.errors import InputError

SIZES = {"mono": 1, "poly2": 2, "poly3": 3, "poly5": 5, "random": 0}


@pytest.fixture(scope="module")
def batch():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(300, len(CLASSES), generator=generator)
    pixels = torch.randint(256, (300, 3, 64, 64), generator=generator).to(torch.float32)
    return logits, pixels


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_classes_of_a_unit_share_neither_shape_nor_texture(seed):
    for kind, classes in zip(planted_kinds(), planted_classes(seed), strict=True):
        assert len(classes) == SIZES[kind]
        assert len({CLASSES[c][0] for c in classes}) == SIZES[kind]
        assert len({CLASSES[c][1] for c in classes}) == SIZES[kind]


def test_seeds_choose_other_classes_and_kinds_keep_their_place():
    assert planted_classes(0) == planted_classes(0) != planted_classes(1)
    kinds = planted_kinds()
    assert [kinds.count(kind) for kind in KINDS] == [PER_KIND] * 5
    assert PER_KIND >= 24


def test_activations_equal_a_loop(batch):
    logits, pixels = batch
    mean, std = torch.linspace(-1, 1, 32), torch.linspace(0.5, 2, 32)
    values = Planted(mean, std)(logits, pixels)
    chances = logits.double().softmax(1)
    odds = (chances / (1 - chances)).log()
    torch.testing.assert_close(log_odds(logits).double(), odds, atol=1e-5, rtol=0)
    assert values.shape == (300, 5 * PER_KIND)
    assert values.dtype == torch.float32
    for unit, classes in enumerate(planted_classes()):
        for row in range(0, 300, 50):
            if classes:
                expected = max(float((odds[row, c] - mean[c]) / std[c]) for c in classes)
                assert values[row, unit] == pytest.approx(expected, abs=1e-5)


def test_random_units_know_nothing_of_the_logits_and_differ(batch):
    logits, pixels = batch
    layer = Planted(torch.zeros(32), torch.ones(32))
    random = [unit for unit, kind in enumerate(planted_kinds()) if kind == "random"]
    values = layer(logits, pixels)[:, random]
    assert torch.equal(values, layer(logits.flip(0), pixels)[:, random])
    correlation = np.corrcoef(values.T.numpy()) - np.eye(len(random))
    assert np.abs(correlation).max() < 0.3  # 5 standard errors of 300 independent pictures
    assert all(len(set(values[:, unit].tolist())) == 300 for unit in range(len(random)))


def test_batch_size_changes_no_bit(batch):
    logits, pixels = batch
    layer = Planted(torch.zeros(32), torch.ones(32))
    whole = layer(logits, pixels)
    parts = torch.cat([layer(logits[i : i + 7], pixels[i : i + 7]) for i in range(0, 300, 7)])
    assert torch.equal(whole, parts)


@pytest.mark.parametrize("levels", [3, 1000])
def test_auroc_equals_scikit_learn_with_ties(levels):
    random = np.random.default_rng(0)
    kinds = np.array(planted_kinds())
    values = random.integers(levels, size=len(kinds)) / levels
    table = pa.table({"log_psi": values, "s": 1 - values})
    found = auroc(table)
    for other in ("mono", "random"):
        keep = (kinds == other) | np.char.startswith(kinds, "poly")
        truth = np.char.startswith(kinds[keep], "poly")
        expected = roc_auc_score(truth, values[keep])
        assert found["PSI"][other] == pytest.approx(expected, abs=1e-12)
        assert found["S"][other] == pytest.approx(1 - expected, abs=1e-12)
    assert auroc(values)["PSI"] == found["PSI"]


def test_units_without_a_score_count_against_it():
    kinds = ["poly2", "poly2", "mono", "random"]
    found = auroc([np.nan, 1.0, 0.0, np.nan], kinds)["PSI"]
    assert found == {"mono": 0.5, "random": 0.0}


def test_auroc_refuses_what_does_not_fit():
    with pytest.raises(InputError, match="do not match the planted units"):
        auroc([0.0, 1.0])
    with pytest.raises(InputError, match="both kinds"):
        auroc([0.0, 1.0], ["poly2", "mono"])
    with pytest.raises(InputError, match="both kinds"):
        rank_auroc([], [1.0])
