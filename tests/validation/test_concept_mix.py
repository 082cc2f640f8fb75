"""Concept mix: which images are in the sets, and which in the pool."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from psi_engine.errors import InputError
from psi_engine.validation.concept_mix import POOL_SHARE, concept_mix, split_images
from psi_engine.validation.plan import split_classes
from tests.validation import world

HALVES = split_classes(list(range(world.CLASSES)), 0)


def mix(labels: torch.Tensor | None = None, top_k: int = 12, seed: int = 0, sets: int = 20):
    labels = world.labels() if labels is None else labels
    return concept_mix(
        world.embeddings(), labels, HALVES, world.PARENTS, top_k=top_k, sets=sets, seed=seed
    )


def test_sets_are_made_of_their_classes_in_equal_parts() -> None:
    suite = mix()
    sizes = {"mono": [12], "poly2": [6, 6], "poly3": [4, 4, 4], "poly5": [3, 3, 2, 2, 2]}
    for plan, ids, labels in zip(suite.plans, suite.image_ids, suite.labels, strict=True):
        assert len(set(ids.tolist())) == 12
        assert torch.equal(labels, world.labels()[ids])
        if plan.classes:
            counts = Counter(labels.tolist())
            assert tuple(sorted(counts)) == plan.classes
            assert sorted(counts.values(), reverse=True) == sizes[plan.kind.split("-")[0]]
    assert torch.equal(suite.embeddings, world.embeddings()[suite.image_ids])
    noise = [p.kind == "noise" for p in suite.plans]
    assert torch.isnan(suite.purity[noise]).all()
    assert (suite.purity[~torch.tensor(noise)] == 1).all()
    assert Counter(plan.kind for plan in suite.plans)["noise"] == 20


def test_noise_is_of_its_own_half_of_the_classes() -> None:
    suite = mix()
    for plan, labels in zip(suite.plans, suite.labels, strict=True):
        assert set(labels.tolist()) <= set(HALVES[plan.half])


def test_pool_and_sets_share_no_image_and_sets_differ() -> None:
    suite = mix(top_k=15)  # exactly the part of a class that is for sets
    _, pool = split_images(world.labels(), 15, 0)
    drawn = set(suite.image_ids.flatten().tolist())
    assert not drawn & set(pool.tolist())
    assert torch.equal(suite.pool, world.embeddings()[pool])
    assert len(pool) == int(POOL_SHARE * world.EACH) * world.CLASSES
    sets = [tuple(ids.tolist()) for ids in suite.image_ids]
    assert len(set(sets)) == len(sets)
    assert any("came up twice" in note for note in mix(top_k=15, sets=60).notes)
    assert sum(plan.kind == "mono" for plan in mix(top_k=15, sets=60).plans) == world.CLASSES


def test_the_seed_draws_and_nothing_else() -> None:
    assert torch.equal(mix().image_ids, mix().image_ids)
    assert not torch.equal(mix().image_ids[:5], mix(seed=1).image_ids[:5])


def test_unlabelled_images_are_in_the_pool_only_and_small_classes_are_left_out() -> None:
    labels = world.labels()
    labels[labels == 0] = -1
    labels[torch.nonzero(labels == 1)[:20, 0]] = -1
    suite = mix(labels)
    assert all(0 not in plan.classes and 1 not in plan.classes for plan in suite.plans)
    assert not (suite.labels == -1).any()
    assert any("2 classes have fewer than 12" in note for note in suite.notes)


def test_k_larger_than_the_classes_is_refused() -> None:
    with pytest.raises(InputError, match=r"too few classes for sets of 16 images.*smaller --top-k"):
        mix(top_k=16)
