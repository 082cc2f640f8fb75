"""One setting of the scoring changed at a time, and the scores of a run's channels under it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from psi_engine.config import ScoreConfig, Solver
from psi_engine.ops.random import hash_keys, string_key
from psi_engine.stored import StoredLayer, StoredRun
from psi_engine.types import Scores

AXES = {
    "K": "only the first so many of each channel's patches",
    "seed": "another seed of clustering and of every null",
    "M": "another number of draws of each null",
    "k": "another range of the number of clusters",
    "solver": "another clustering or another number of its seedings",
    "images": "two halves of the images, each with its own patches and its own pool",
    "patch": "crops of another size, cut and embedded anew",
    "sites": "another policy for several sites of one image, mined anew",
}
"""What is changed on each axis. The last two, and K beyond the run's, need variants."""

K_SHARES = (0.2, 0.4, 0.6, 0.8, 1.0)
REPLICATES = (20, 100, 1000)
K_MAX = (3, 5, 8)
RESTARTS = (5, 20)
LLOYD_RESTARTS = 10
SEEDS = 3
SPLITS = 3
_LEAST = 4
# Patches a set needs to be scored.


@dataclass(frozen=True)
class Condition:
    """One way to score a run.

    axis : key of :data:`AXES`. name : on that axis. config : settings of the scorer. patches : so
    many of the first of each channel; None = all. half : (split, side) of the images; None = all.
    variant : name of the variant whose patches are scored; None = the run's own.
    """

    axis: str
    name: str
    config: ScoreConfig
    patches: int | None = None
    half: tuple[int, int] | None = None
    variant: str | None = None

    @property
    def work(self) -> tuple[Any, ...]:
        """What the scores depend on: conditions of equal work have equal scores."""
        return self.config, self.patches, self.half, self.variant


def conditions(config: ScoreConfig, top_k: int, seed: int) -> list[Condition]:
    """The conditions that stored embeddings suffice for, axis by axis.

    Parameters
    ----------
    config : ScoreConfig
        The run's, without subsamples; it stands on every axis, among the others of the axis.
    top_k : int
        Patches that channels have, at most: as many as were mined, or as there are.
    seed : int
        Of the halves of the images.
    """
    sizes = sorted({size for share in K_SHARES if (size := round(share * top_k)) >= _LEAST})
    found = [
        Condition("K", str(size), config, None if size == top_k else size)
        for size in sizes
        if size > config.k_min
    ]
    found += [
        Condition("seed", str(value), replace(config, seed=value))
        for value in range(config.seed, config.seed + SEEDS)
    ]
    found += [
        Condition("M", str(count), replace(config, replicates=count))
        for count in sorted({*REPLICATES, config.replicates})
    ]
    found += [
        Condition("k", f"{config.k_min}–{high}", replace(config, k_max=high))
        for high in sorted({*K_MAX, config.k_max})
        if config.k_min <= high < top_k
    ]
    solvers: set[tuple[Solver, int]] = {("hartigan", count) for count in RESTARTS}
    solvers.add(("lloyd", LLOYD_RESTARTS))
    found += [
        Condition("solver", f"{solver} × {count}", replace(config, solver=solver, restarts=count))
        for solver, count in sorted({*solvers, (config.solver, config.restarts)})
    ]
    if top_k // 2 > max(_LEAST, config.k_min):
        found += [
            Condition("images", f"split {split + 1} {'ab'[side]}", config, half=(split, side))
            for split in range(seed, seed + SPLITS)
            for side in (0, 1)
        ]
    return found


def pairs(listed: list[Condition]) -> list[tuple[Condition, Condition]]:
    """Which conditions are compared: all of one axis, of image halves those of one split."""
    found = []
    for place, one in enumerate(listed):
        for other in listed[place + 1 :]:
            split = one.half is None or other.half is None or one.half[0] == other.half[0]
            if one.axis == other.axis and split:
                found.append((one, other))
    return found


def score_under(stored: StoredRun, layer: str, condition: Condition, **options: Any) -> Scores:
    """Score a layer under a condition; ``stored`` is the run, or the condition's variant."""
    given = options
    if condition.half is not None:
        given = {**options, **image_half(stored.layers[layer], *condition.half)}
    return stored.score(layer, condition.config, patches=condition.patches, **given)


def image_half(layer: StoredLayer, split: int, side: int) -> dict[str, Any]:
    """What the scorer would be given, had only half of the images been there.

    Parameters
    ----------
    split : int
        Key of the split: an image's side is a bit of its hash with it.
    side : {0, 1}

    Returns
    -------
    dict
        ``embeddings``, ``labels``, ``mask`` of up to ⌊K/2⌋ patches, ``pool``; K is the number
        of patches of the layer's channels.

    Notes
    -----
    A channel's stored patches from one half are the first of that half, whatever the other holds:
    they are what mining the half would find, up to their number. Where fewer than ⌊K/2⌋ of the K
    stored patches lie in a half, its set is that much shorter; nothing is approximated else.
    """
    images = layer.sites.image_ids[:, : layer.rows.shape[1]]
    inside = layer.mask & (_side(images, split) == side)
    front = torch.argsort((~inside).to(torch.uint8), dim=1, stable=True)
    front = front[:, : layer.rows.shape[1] // 2]
    labels = layer.labels
    return {
        "embeddings": layer.embeddings.gather(
            1, front[..., None].expand(-1, -1, layer.all_embeddings.shape[1])
        ),
        "labels": None if labels is None else labels.gather(1, front),
        "mask": inside.gather(1, front),
        "pool": layer.pool[_side(layer.pool_images, split) == side],
    }


def smallest_pool(layer: StoredLayer, listed: list[Condition]) -> int:
    """Patches in the smallest pool that a condition leaves of a layer's."""
    pools = [len(layer.pool_images)]
    for condition in listed:
        if condition.half is not None:
            split, side = condition.half
            pools.append(int((_side(layer.pool_images, split) == side).sum()))
    return min(pools)


def _side(images: Tensor, split: int) -> Tensor:
    return (hash_keys(split, string_key("validation/stability/half"), images) >> 61) & 1
