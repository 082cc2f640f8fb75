"""Hosts, donors and places of the swaps."""

from __future__ import annotations

import pytest
import torch

from psi_engine.causal.config import CONDITIONS
from psi_engine.causal.plan import (
    Hosts,
    disjoint_squares,
    plan_hosts,
    square_side,
    unusable_reason,
)
from psi_engine.errors import InputError
from psi_engine.ops.random import hash_keys
from psi_engine.types import ActivationShape, ReceptiveField
from tests.causal.planned import FIELD, SIZE, layer_plan, statistics

AT = {name: place for place, name in enumerate(CONDITIONS)}
FIELDS = (
    "image", "u", "v", "rank", "own_cluster", "cluster", "mined", "target", "source",
    "donor_image", "donor_u", "donor_v", "donor_channel", "donor_cluster",
)  # fmt: skip


def same(one: Hosts, other: Hosts, count: int | None = None) -> bool:
    return all(torch.equal(getattr(one, f)[:count], getattr(other, f)[:count]) for f in FIELDS)


@pytest.mark.parametrize("kind", ["top", "random"])
def test_donors_are_what_their_condition_says(kind: str) -> None:
    plan = layer_plan()
    for row in range(6):
        hosts = plan_hosts(plan, row, kind, 8)
        assert len(hosts) == 8
        own = plan.top.image_ids[row].tolist()
        cluster = dict(zip(own, plan.assignments[row].tolist(), strict=True))
        for host in range(8):
            donor = dict(zip(CONDITIONS, hosts.donor_image[host].tolist(), strict=True))
            assert int(hosts.image[host]) not in donor.values()
            assert cluster[donor["aligned"]] == hosts.cluster[host]
            assert cluster[donor["non-aligned"]] != hosts.cluster[host]
            assert cluster[donor["non-aligned"]] == hosts.donor_cluster[host, AT["non-aligned"]]
            assert donor["random"] not in own
            assert hosts.donor_channel[host, AT["random"]] == donor["random"] // 12 != row
            assert donor["shuffled-position"] == donor["aligned"]
            assert donor["ablate-elsewhere"] == -1
            if kind == "top":
                assert cluster[int(hosts.image[host])] == hosts.cluster[host]
    assert set(plan_hosts(plan, 0, "random", 8).cluster.tolist()) == {0, 1}


@pytest.mark.parametrize("side", [1, 5, 9, 10])
def test_squares_lie_in_the_image_and_elsewhere_is_disjoint(side: int) -> None:
    plan = layer_plan(side=side)
    for row in range(6):
        for kind in ("top", "random"):
            hosts = plan_hosts(plan, row, kind, 8)
            for boxes in (hosts.target, hosts.source):
                assert int(boxes.min()) >= 0
                assert int(boxes.max()) <= SIZE
                assert (boxes[..., 2:] - boxes[..., :2] == side).all()
            target = hosts.target[:, 0]
            assert (hosts.target[:, :3] == target[:, None]).all()
            assert (hosts.target[:, 3] == hosts.target[:, 4]).all()
            for one, other in zip(target.tolist(), hosts.target[:, 3].tolist(), strict=True):
                apart = (one[0] >= other[2], other[0] >= one[2], one[1] >= other[3],
                         other[1] >= one[3])  # fmt: skip
                assert any(apart)


def test_random_donors_come_from_channels_that_share_few_images() -> None:
    """Channel 1 shares most of its images with channel 0, channel 2 some, the others none."""
    images = torch.arange(72).view(6, 12)
    images[1, :9] = images[0, :9]
    images[2, :3] = images[0, :3]
    hosts = plan_hosts(layer_plan(images), 0, "random", 8)
    assert set(hosts.donor_channel[:, AT["random"]].tolist()) <= {3, 4, 5}
    images[3:, :6] = images[0, :6]  # now channel 2 shares the least, the median share is a half
    hosts = plan_hosts(layer_plan(images), 0, "random", 8)
    drawn = hosts.donor_channel[:, AT["random"]].tolist()
    assert set(drawn) <= {2, 3, 4, 5}
    assert 2 in drawn


def test_elsewhere_is_uniform_over_the_disjoint_places() -> None:
    target = torch.tensor([[1, 2, 3, 4]]).expand(6000, 4)
    found = disjoint_squares(target, 2, 6, hash_keys(3, torch.arange(6000)))
    allowed = [(x, y) for x in range(5) for y in range(5) if abs(x - 1) >= 2 or abs(y - 2) >= 2]
    seen = dict.fromkeys(allowed, 0)
    for place in map(tuple, found[:, :2].tolist()):
        seen[place] += 1
    mean = 6000 / len(allowed)
    assert all(abs(n - mean) < 5 * mean**0.5 for n in seen.values())


def test_a_target_at_the_border_moves_inward() -> None:
    plan = layer_plan()
    squares = plan.squares(torch.tensor([0, 9, 5]), torch.tensor([0, 9, 0]))
    assert squares.tolist() == [[0, 0, 9, 9], [21, 21, 30, 30], [0, 12, 9, 21]]


def test_sites_of_the_whole_image_have_its_middle() -> None:
    flat = ReceptiveField((30.0, 30.0), (0.0, 0.0), (15.0, 15.0), "image")
    plan = layer_plan(field=flat, shape=ActivationShape("flat", 6, (1, 1)), side=10)
    assert plan.squares(torch.tensor([0]), torch.tensor([0])).tolist() == [[10, 10, 20, 20]]
    tokens = ReceptiveField((9.0, 9.0), (3.0, 3.0), (1.5, 1.5), "graph", tokens=(1, 10))
    plan = layer_plan(field=tokens, side=9)
    squares = plan.squares(torch.tensor([0, 1, 46]), torch.zeros(3, dtype=torch.int64))
    assert squares.tolist() == [[10, 10, 19, 19], [0, 0, 9, 9], [12, 9, 21, 18]]


def test_hosts_are_the_best_of_each_cluster_in_turn_one_an_image() -> None:
    images = torch.tensor([[0, 0, 1, 2, 3, 4, 5, 6], [9, 10, 11, 12, 13, 14, 15, 16]])
    assignments = torch.tensor([[0, 0, 0, 0, 0, 1, 1, -1], [0, 1] * 4])
    plan = layer_plan(images, assignments)
    hosts = plan_hosts(plan, 0, "top", 5)
    assert hosts.rank.tolist() == [0, 5, 2, 6, 3]
    assert hosts.cluster.tolist() == [0, 1, 0, 1, 0]
    assert torch.equal(hosts.own_cluster, hosts.cluster)
    assert hosts.mined.tolist() == [8, 3, 6, 2, 5]


def test_draws_depend_on_neither_channels_beside_nor_the_number_of_hosts() -> None:
    plan = layer_plan()
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    turned = layer_plan(
        torch.arange(72).view(6, 12)[order], plan.assignments[order], channels=order
    )
    for part in (turned.sites.top, turned.sites.random):
        source = plan.sites.top if part is turned.sites.top else plan.sites.random
        for name in ("u", "v"):
            getattr(part, name).copy_(getattr(source, name)[order])
    for kind in ("top", "random"):
        whole = plan_hosts(plan, 4, kind, 8)
        assert same(whole, plan_hosts(turned, 4, kind, 8))
        assert same(whole, plan_hosts(plan, 4, kind, 3), 3)
        assert not same(whole, plan_hosts(layer_plan(seed=1), 4, kind, 8))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ("constant", "no activation range: 0.5 to 0.5"),
        ("one cluster", "1 cluster with patches of two images, two are needed; sizes [11, 1]"),
        ("one image", "1 cluster with patches of two images, two are needed; sizes [6, 6]"),
        ("none", "0 clusters with patches of two images, two are needed; sizes []"),
        (
            "alone",
            "no unrelated channel of the layer has patches from images that are not this one's",
        ),
    ],
)
def test_every_reason_against_a_channel(change: str, reason: str) -> None:
    images = torch.arange(72).view(6, 12)
    assignments = (torch.arange(12) % 2).expand(6, 12).clone()
    if change == "one cluster":
        assignments[0] = torch.tensor([0] * 11 + [1])
    if change == "one image":
        images[0, ::2] = 0
    if change == "none":
        assignments[0] = -1
    if change == "alone":
        images[1:] = images[0]
    plan = layer_plan(images, assignments)
    if change == "constant":
        stats = statistics(torch.full((6,), 0.5), torch.full((6,), 0.5))
        object.__setattr__(plan.sites, "stats", stats)
    assert (unusable_reason(plan, 0) or "").startswith(reason)
    assert unusable_reason(layer_plan(), 0) is None


def test_the_side_is_the_patchs_at_most_a_third() -> None:
    assert square_side(FIELD, 30, None) == 9
    assert square_side(FIELD._replace(size=(88.0, 88.0)), 224, None) == 74
    assert square_side(FIELD._replace(size=(8.2, 8.9)), 224, None) == 9
    assert square_side(FIELD, 224, 40) == 40
    with pytest.raises(InputError, match="75 pixels of 224; expected at most 74"):
        square_side(FIELD, 224, 75)
