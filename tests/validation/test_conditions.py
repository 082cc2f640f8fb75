"""One setting changed at a time, from what a run has stored."""

from __future__ import annotations

import pytest
import torch

from psi_engine.config import ScoreConfig
from psi_engine.stored import StoredRun
from psi_engine.validation.conditions import (
    AXES,
    conditions,
    image_half,
    pairs,
    score_under,
    smallest_pool,
)

OWN = ScoreConfig(replicates=30)


def test_the_runs_own_settings_stand_on_every_axis() -> None:
    listed = conditions(OWN, 50, seed=0)
    own = (OWN, None, None, None)
    assert {c.axis for c in listed if c.work == own} == {"K", "seed", "M", "k", "solver"}
    assert {c.axis for c in listed} < set(AXES)
    names = {axis: [c.name for c in listed if c.axis == axis] for axis in AXES}
    assert names["K"] == ["10", "20", "30", "40", "50"]
    assert names["seed"] == ["0", "1", "2"]
    assert names["M"] == ["20", "30", "100", "1000"]
    assert names["k"] == ["2–3", "2–5", "2–8"]
    assert names["solver"] == ["hartigan × 5", "hartigan × 20", "lloyd × 10"]
    assert len(names["images"]) == 6


def test_each_condition_changes_what_its_axis_says_and_nothing_else() -> None:
    changed = {"K": set(), "seed": {"seed"}, "M": {"replicates"}, "k": {"k_max"}}
    changed |= {"solver": {"solver", "restarts"}, "images": set()}
    for condition in conditions(OWN, 50, seed=0):
        differing = {
            name for name, value in vars(condition.config).items() if value != getattr(OWN, name)
        }
        assert differing <= changed[condition.axis]
        assert condition.axis == "K" or condition.patches is None
        assert (condition.half is not None) == (condition.axis == "images")


def test_few_patches_leave_out_what_they_cannot_fill() -> None:
    listed = conditions(OWN, 6, seed=0)
    assert [c.name for c in listed if c.axis == "K"] == ["4", "5", "6"]
    assert [c.name for c in listed if c.axis == "k"] == ["2–3", "2–5"]
    assert not [c for c in listed if c.axis == "images"]


def test_halves_are_compared_within_their_split_only() -> None:
    found = pairs(conditions(OWN, 50, seed=3))
    assert all(one.axis == other.axis for one, other in found)
    halves = [(one.half, other.half) for one, other in found if one.axis == "images"]
    assert halves == [((split, 0), (split, 1)) for split in (3, 4, 5)]
    assert len([1 for one, _ in found if one.axis == "K"]) == 10


def test_a_prefix_is_scored_as_if_no_more_had_been_mined(toy_stored: StoredRun) -> None:
    few = next(c for c in conditions(OWN, 12, seed=0) if c.axis == "K" and c.patches == 10)
    scores = score_under(toy_stored, "conv2", few)
    assert int(scores.n_patches.max()) == 10
    assert scores.assignments.shape[1] == 10


@pytest.mark.parametrize("layer", ["conv1", "conv2"])
def test_halves_hold_the_first_patches_of_their_own_images(
    toy_stored: StoredRun, layer: str
) -> None:
    """Channel by channel, by a loop over the stored sites."""
    stored = toy_stored.layers[layer]
    both = [image_half(stored, 0, side) for side in (0, 1)]
    images = {int(i) for i in stored.pool_images} | {
        int(i) for i in stored.sites.image_ids.flatten()
    }
    own = [
        {i for i, bit in zip(images, _sides(images), strict=True) if bit == side} for side in (0, 1)
    ]
    assert min(map(len, own)) > 0.25 * len(images)
    pools = [len(half["pool"]) for half in both]
    assert sum(pools) == len(stored.pool)
    for side, half in enumerate(both):
        in_half = [int(i) in own[side] for i in stored.pool_images]
        torch.testing.assert_close(half["pool"], stored.pool[torch.tensor(in_half)], rtol=0, atol=0)
        for channel, ids in enumerate(stored.sites.image_ids.tolist()):
            places = [p for p, i in enumerate(ids) if i in own[side]][:6]
            if not stored.mask[channel].all():
                places = []
            mask = half["mask"][channel]
            assert mask.tolist() == [True] * len(places) + [False] * (6 - len(places))
            found = half["embeddings"][channel][mask]
            assert torch.equal(found, stored.embeddings[channel, places])
            assert half["labels"][channel][mask].tolist() == stored.labels[channel, places].tolist()


def test_the_smallest_pool_is_that_of_some_half(toy_stored: StoredRun) -> None:
    layer = toy_stored.layers["conv2"]
    listed = conditions(OWN, 12, seed=0)
    pools = [len(image_half(layer, *c.half)["pool"]) for c in listed if c.half is not None]
    assert smallest_pool(layer, listed) == min(pools) < len(layer.pool)
    assert smallest_pool(layer, []) == len(layer.pool)


def _sides(images: set[int]) -> list[int]:
    from psi_engine.ops.random import hash_keys, string_key

    key = string_key("validation/stability/half")
    return [(int(hash_keys(0, key, image)) >> 61) & 1 for image in images]
