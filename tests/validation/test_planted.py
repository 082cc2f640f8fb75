"""Planted units: outputs matched to classes, activations, and what mining finds."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from psi_engine.errors import InputError
from psi_engine.validation.plan import Plan, split_classes
from psi_engine.validation.planted import activations, match_outputs, planted_units
from tests.validation import world

HALVES = split_classes(list(range(world.CLASSES)), 0)


def plant(**changes):
    given = {"top_k": 10, "pool": 200, "units": 12, "seed": 0} | changes
    logits = given.pop("logits", world.logits())
    return planted_units(logits, world.embeddings(), world.labels(), HALVES, world.PARENTS, **given)


def test_outputs_are_matched_in_any_order_and_the_others_ignored() -> None:
    outputs = match_outputs(world.logits(), world.labels(), 10)
    assert outputs.labels == outputs.clean == list(range(world.CLASSES))
    assert not outputs.dropped
    chosen = world.logits().double()[:, [world.CLASSES + 1 - c for c in range(world.CLASSES)]]
    chances = chosen.softmax(1)
    expected = (chances / (1 - chances)).log()
    torch.testing.assert_close(outputs.odds.double(), expected, atol=1e-4, rtol=1e-4)


def test_colliding_and_impure_classes_are_dropped_with_the_reason() -> None:
    logits = world.logits()
    logits[world.labels() == 3] = logits[world.labels() == 4]  # both answer at 4's output
    # one image in thirty of ten classes pleases 7's output far more than 7's own images do
    some = torch.arange(20, 30) * world.EACH
    logits[some, world.CLASSES + 1 - 7] += 30.0
    outputs = match_outputs(logits, world.labels(), 10)
    reasons = {3: "same output", 4: "same output", 7: "fewer than 50% of the top 10 images"}
    assert outputs.dropped.keys() == reasons.keys()
    assert all(reason in outputs.dropped[label] for label, reason in reasons.items())
    assert outputs.clean == [c for c in range(world.CLASSES) if c not in reasons]
    suite = plant(logits=logits)
    assert all(not reasons.keys() & set(plan.classes) for plan in suite.plans)
    assert any("classes are left out" in note for note in suite.notes)


def test_activations_equal_a_loop() -> None:
    outputs, labels = match_outputs(world.logits(), world.labels(), 10), world.labels()
    plans = [Plan("mono", "tuning", (5,)), Plan("poly3-unrelated", "tuning", (1, 8, 20))]
    values = activations(outputs, labels, plans, 0)
    odds = outputs.odds.double().numpy()
    for unit, plan in enumerate(plans):
        for image in range(0, len(labels), 97):
            best = -math.inf
            for label in plan.classes:
                own = [odds[i, label] for i in range(len(labels)) if labels[i] == label]
                score = (odds[image, label] - np.mean(own)) / np.std(own, ddof=1)
                best = max(best, score)
            assert values[image, unit].item() == pytest.approx(best, rel=1e-6, abs=1e-6)


def test_both_noise_kinds_ignore_classes_and_differ_from_unit_to_unit() -> None:
    outputs, labels = match_outputs(world.logits(), world.labels(), 10), world.labels()
    plans = [Plan(kind, "tuning", ()) for kind in ("noise-value", "noise-projection") * 6]
    values = activations(outputs, labels, plans, 0).double()
    correlation = np.corrcoef(values.T.numpy()) - np.eye(12)
    # 1200 images: 5 standard errors for the values; projections of 40 outputs overlap more
    assert np.abs(correlation[::2, ::2]).max() < 5 / math.sqrt(1200)
    assert np.abs(correlation).max() < 0.9
    assert 0 <= values[:, ::2].min() <= values[:, ::2].max() < 1
    confident = world.logits().amax(1).double()
    for unit in range(1, 12, 2):  # weights sum to zero: no overall confidence
        assert abs(np.corrcoef(values[:, unit], confident)[0, 1]) < 0.3
    assert not torch.equal(values, activations(outputs, labels, plans, 1).double())


def test_mining_finds_the_classes_of_each_unit() -> None:
    suite = plant()
    for plan, labels in zip(suite.plans, suite.labels, strict=True):
        if plan.classes:
            assert set(labels.tolist()) <= set(plan.classes)
            least = {1: 1, 2: 2, 3: 2, 5: 3}[len(plan.classes)]
            assert len(set(labels.tolist())) >= least
    assert torch.equal(suite.embeddings, world.embeddings()[suite.image_ids])
    assert suite.bottom is not None
    assert suite.bottom.shape == suite.embeddings.shape
    assert suite.weights is not None
    assert suite.weights.amax(1).allclose(torch.ones(len(suite.plans)))
    assert (suite.weights.diff(dim=1) <= 0).all()
    assert len(suite.pool) == 200
    rows = {tuple(row) for row in world.embeddings().tolist()}
    assert all(tuple(row) in rows for row in suite.pool.tolist())
    groups = [plan.classes for plan in suite.plans if plan.kind == "poly2-unrelated"]
    assert len(set(groups)) == len(groups)


def test_models_that_know_nothing_of_the_classes_are_refused() -> None:
    constant = torch.zeros(len(world.labels()), 5)
    with pytest.raises(InputError, match="do not tell the data's classes apart"):
        plant(logits=constant)
    generator = torch.Generator().manual_seed(0)
    guessing = torch.randn(len(world.labels()), 400, generator=generator)
    with pytest.raises(InputError, match="too few classes for planted units"):
        plant(logits=guessing)


def test_an_output_that_is_likely_on_any_image_takes_no_class() -> None:
    logits = world.logits()
    logits[:, 0] += 20.0
    assert match_outputs(logits, world.labels(), 10).clean == list(range(world.CLASSES))
