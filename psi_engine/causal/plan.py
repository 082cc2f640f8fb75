"""Which squares go where: hosts, donors and places of every swap, drawn before anything runs.

Every draw is keyed by (seed, layer, channel, kind of host, the host's site): neither the order
of the channels nor the number of hosts nor what else is swapped changes one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from psi_engine.causal.config import HostKind
from psi_engine.errors import InputError
from psi_engine.ops.random import hash_keys, string_key, uniform
from psi_engine.patches import site_boxes
from psi_engine.types import LayerSites, ReceptiveField, SiteSet

_NEVER = torch.iinfo(torch.int64).max


@dataclass(frozen=True)
class Hosts:
    """The swaps of one channel into one kind of host; everything int64.

    image, u, v : (hosts,), the target site. rank : (hosts,), its place among the mined sites.
    own_cluster : (hosts,), of the site itself, −1 for random ones. cluster : (hosts,), the one
    the aligned patch is of. mined : float32 (hosts,), the activation found while mining.
    target : (hosts, conditions, 4), the square that is replaced; source : (hosts, conditions,
    4), of the donor; donor_image, donor_u, donor_v, donor_channel, donor_cluster : (hosts,
    conditions), −1 where blanked or where it does not apply.
    """

    layer: str
    row: int
    channel: int
    kind: HostKind
    image: Tensor
    u: Tensor
    v: Tensor
    rank: Tensor
    own_cluster: Tensor
    cluster: Tensor
    mined: Tensor
    target: Tensor
    source: Tensor
    donor_image: Tensor
    donor_u: Tensor
    donor_v: Tensor
    donor_channel: Tensor
    donor_cluster: Tensor

    def __len__(self) -> int:
        return len(self.image)


@dataclass(frozen=True)
class LayerPlan:
    """What donors and hosts of a layer are drawn from.

    sites : mined. assignments : int64 (channels, patches), −1 = none. mask : bool (channels,
    patches), the scored top sites. side : of the square. image_size : S.
    """

    sites: LayerSites
    assignments: Tensor
    mask: Tensor
    field: ReceptiveField
    side: int
    image_size: int
    seed: int

    @property
    def top(self) -> SiteSet:
        """The top sites, cut to the scored width."""
        return SiteSet(*(x[:, : self.mask.shape[1]] for x in self.sites.top))

    def squares(self, u: Tensor, v: Tensor) -> Tensor:
        """The square of each site, moved inward at borders: int64 (..., 4).

        Sites that stand for the whole image (prefix tokens, flat outputs) have its middle.
        """
        side = float(self.side)
        boxes = site_boxes(u, v, self.field._replace(size=(side, side)), self.image_size)
        low = (self.image_size - self.side) // 2
        middle = torch.tensor([low, low, low + self.side, low + self.side])
        wide = boxes[..., 2] - boxes[..., 0] != self.side
        return torch.where(wide[..., None], middle, boxes)


def square_side(field: ReceptiveField, image_size: int, asked: int | None) -> int:
    """Side of the swapped square: the patch's, at most a third of the image.

    A third always leaves a disjoint square of the same side: of the two strips beside the
    target, one is at least as wide.

    Raises
    ------
    InputError
        A side asked for that leaves none.
    """
    most = max(1, image_size // 3)
    if asked is None:
        return min(most, max(1, math.ceil(max(field.size) - 1e-6)))
    if asked > most:
        raise InputError(
            "the swapped square is too large",
            got=f"{asked} pixels of {image_size}",
            expected=f"at most {most}, a third of the image",
            fix="a larger one may leave no disjoint place for the controls elsewhere",
        )
    return asked


def usable_clusters(plan: LayerPlan, row: int) -> list[int]:
    """Clusters of a channel with patches from two images or more, largest first."""
    inside = plan.mask[row] & (plan.assignments[row] >= 0)
    clusters, images = plan.assignments[row][inside], plan.top.image_ids[row][inside]
    found = []
    for cluster in clusters.unique().tolist():
        members = images[clusters == cluster]
        if len(members.unique()) > 1:
            found.append((-len(members), cluster))
    return [cluster for _, cluster in sorted(found)]


def unusable_reason(plan: LayerPlan, row: int) -> str | None:
    """Why a scored channel cannot be swapped, None if it can."""
    low, high = float(plan.sites.stats.minimum[row]), float(plan.sites.stats.maximum[row])
    if not high > low:
        return f"no activation range: {low:g} to {high:g}"
    usable = usable_clusters(plan, row)
    if len(usable) < 2:
        sizes = plan.assignments[row][plan.assignments[row] >= 0].bincount().tolist()
        return (
            f"{len(usable)} cluster{'' if len(usable) == 1 else 's'} with patches of two images, "
            f"two are needed; sizes {sizes}"
        )
    others = plan.top.image_ids[_unrelated(plan, row)].unique()
    if len(others) < 2:
        return "no unrelated channel of the layer has patches from images that are not this one's"
    return None


def plan_hosts(plan: LayerPlan, row: int, kind: HostKind, count: int) -> Hosts:
    """Draw the swaps of a usable channel.

    Parameters
    ----------
    plan : LayerPlan
    row : int
        Of the channel in ``plan.sites``; :func:`unusable_reason` has nothing against it.
    kind : {"top", "random"}
        ``top``: the highest sites of each usable cluster in turn, one an image; the aligned
        patch is of the host's cluster. ``random``: the first random sites that were mined; they
        have no cluster, so the usable ones take turns as the aligned one: aligned and non-aligned
        are exchangeable there, and the tests leave that pair out.
    count : int
        Hosts, at most.

    Returns
    -------
    Hosts
        Empty where no random sites were mined.

    Notes
    -----
    Non-aligned: first another usable cluster is drawn, then one of its patches. Random: first
    one of the channels of the layer that share images with this one no more than the median
    channel does, then one of its top sites, from an image that is not among this channel's.
    Donors never come from the host's image. Elsewhere is one square per host, uniform over the
    places disjoint from the target, for both controls that use it.
    """
    clusters = usable_clusters(plan, row)
    if kind == "top":
        sites, ranks = plan.top, _spread_over_clusters(plan, row, clusters, count)
        own = plan.assignments[row, ranks]
        cluster = own
    else:
        sites = plan.sites.random
        ranks = torch.nonzero(sites.image_ids[row] >= 0)[:count, 0]
        own = torch.full_like(ranks, -1)
        cluster = torch.tensor(clusters)[torch.arange(len(ranks)) % len(clusters)]
    image = sites.image_ids[row, ranks]
    u, v = sites.u[row, ranks].long(), sites.v[row, ranks].long()
    channel = int(plan.sites.channels[row])
    key = hash_keys(
        plan.seed, string_key("swap"), string_key(plan.sites.layer), channel, string_key(kind),
        image, u, v,
    )  # fmt: skip
    aligned = _draw_of_cluster(plan, row, _salted(key, "aligned"), image, cluster)
    numbers = torch.tensor(clusters)
    other = numbers[
        _draw(_salted(key, "cluster"), numbers, numbers != cluster[:, None])
    ]  # another usable cluster
    non_aligned = _draw_of_cluster(plan, row, _salted(key, "non-aligned"), image, other)
    other_row, other_rank = _draw_unrelated(plan, row, _salted(key, "random"), image)
    rows = torch.stack([torch.full_like(aligned, row)] * 2 + [other_row], 1)
    places = torch.stack([aligned, non_aligned, other_rank], 1)
    donor_u, donor_v = (x[rows, places].long() for x in (plan.top.u, plan.top.v))
    target = plan.squares(u, v)
    elsewhere = disjoint_squares(target, plan.side, plan.image_size, _salted(key, "elsewhere"))
    blank = torch.full_like(image, -1)[:, None]
    take = [0, 1, 2, 0]  # the donors of all but the blanked square, in the order of CONDITIONS
    nothing = torch.full_like(blank, -1)
    source = torch.cat([plan.squares(donor_u, donor_v)[:, take], target[:, None]], 1)
    return Hosts(
        layer=plan.sites.layer,
        row=row,
        channel=channel,
        kind=kind,
        image=image,
        u=u,
        v=v,
        rank=ranks,
        own_cluster=own,
        cluster=cluster,
        mined=sites.values[row, ranks],
        target=torch.stack([target] * 3 + [elsewhere] * 2, 1),
        source=source,
        donor_image=torch.cat([plan.top.image_ids[rows, places][:, take], blank], 1),
        donor_u=torch.cat([donor_u[:, take], nothing], 1),
        donor_v=torch.cat([donor_v[:, take], nothing], 1),
        donor_channel=torch.cat([plan.sites.channels[rows][:, take], nothing], 1),
        donor_cluster=torch.stack([cluster, other, blank[:, 0], cluster, blank[:, 0]], 1),
    )


def _salted(key: Tensor, what: str) -> Tensor:
    return hash_keys(key, string_key(what))


def _draw(key: Tensor, ids: Tensor, allowed: Tensor) -> Tensor:
    """One position per key, uniform over the allowed ones: least hash of (key, id)."""
    draws = hash_keys(key[:, None], ids)
    return torch.where(allowed, draws, _NEVER).argmin(1)


def _spread_over_clusters(plan: LayerPlan, row: int, clusters: Sequence[int], count: int) -> Tensor:
    """Ranks of the best sites of each cluster in turn, one an image, in rank order of the turns."""
    seen: set[int] = set()
    turns: dict[int, int] = dict.fromkeys(clusters, 0)
    order = []
    images, assigned = plan.top.image_ids[row].tolist(), plan.assignments[row].tolist()
    for rank, there in enumerate(plan.mask[row].tolist()):
        cluster = assigned[rank]
        if not there or cluster not in turns or images[rank] in seen:
            continue
        seen.add(images[rank])
        order.append((turns[cluster], rank))
        turns[cluster] += 1
    return torch.tensor([rank for _, rank in sorted(order)[:count]], dtype=torch.int64)


def _site_ids(sites: SiteSet, row: int | Tensor) -> Tensor:
    return hash_keys(sites.image_ids[row], sites.u[row].long(), sites.v[row].long())


def _draw_of_cluster(
    plan: LayerPlan, row: int, key: Tensor, image: Tensor, cluster: Tensor
) -> Tensor:
    """Rank of a top site of each host's cluster, from another image."""
    members = plan.mask[row] & (plan.assignments[row] == cluster[:, None])
    allowed = members & (plan.top.image_ids[row] != image[:, None])
    return _draw(key, _site_ids(plan.top, row), allowed)


def _unrelated(plan: LayerPlan, row: int) -> Tensor:
    """Top sites of unrelated channels from images that are not among this one's: bool.

    Unrelated are the other channels that share no larger part of their images with this one
    than the median channel does: half of the layer at least.
    """
    images = plan.top.image_ids
    shared = plan.mask & torch.isin(images, images[row][plan.mask[row]])
    share = shared.sum(1) / plan.mask.sum(1)  # NaN where a channel has no patches
    others = share.clone()
    others[row] = torch.nan
    found = plan.mask & ~shared & (share <= others.nanmedian())[:, None]
    found[row] = False
    return found


def _draw_unrelated(plan: LayerPlan, row: int, key: Tensor, image: Tensor) -> tuple[Tensor, Tensor]:
    """Row and rank of a top site of another channel, for each host."""
    unrelated, images = _unrelated(plan, row), plan.top.image_ids
    # Host by host: all at once would be hosts × channels × patches.
    able = torch.zeros(len(image), len(images), dtype=torch.bool)
    for host, one in enumerate(image):
        able[host] = (unrelated & (images != one)).any(1)
    chosen = _draw(key, plan.sites.channels, able)
    allowed = unrelated[chosen] & (images[chosen] != image[:, None])
    return chosen, _draw(_salted(key, "site"), _site_ids(plan.top, chosen), allowed)


def disjoint_squares(target: Tensor, side: int, image_size: int, key: Tensor) -> Tensor:
    """A square disjoint from each target, uniform over all places in the image.

    Parameters
    ----------
    target : Tensor, int64 (hosts, 4)
        Squares of ``side``, at most a third of the image.
    key : Tensor, int64 (hosts,)
        Of the draws.

    Returns
    -------
    Tensor
        int64 (hosts, 4).
    """
    first = torch.arange(image_size - side + 1)
    y, x = (grid.flatten() for grid in torch.meshgrid(first, first, indexing="ij"))
    apart = ((x - target[:, :1]).abs() >= side) | ((y - target[:, 1:2]).abs() >= side)
    reached = apart.cumsum(1)
    wanted = (uniform(key) * reached[:, -1]).to(torch.int64) + 1
    place = torch.searchsorted(reached, wanted[:, None])[:, 0]
    return torch.stack([x[place], y[place], x[place] + side, y[place] + side], 1)
