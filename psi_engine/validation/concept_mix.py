"""Concept mix: sets of images of one class, of several, or of none in particular.

No network is studied: the sets are what a unit's top patches would be, so only the encoder and
the measures are judged. Each class's images are split by keyed hash into a part for the pool
(:data:`POOL_SHARE`) and a part for the sets. Noise sets are drawn from the sets' part of all
classes of their half: drawn from the pool's images they would be the pool null itself.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from psi_engine.ops.random import hash_keys, string_key
from psi_engine.validation.plan import Plan, plan_units
from psi_engine.validation.relations import Parents
from psi_engine.validation.suite import Suite, check_classes

NAME = "concept-mix"
NOISE = "noise"
POOL_SHARE = 0.5
"""Share of each class's images that goes to the pool, rounded down; the rest is for the sets."""


def concept_mix(
    embeddings: Tensor,
    labels: Tensor,
    halves: Mapping[str, list[int]],
    parents: Parents,
    *,
    top_k: int,
    sets: int,
    seed: int,
) -> Suite:
    """Draw the sets.

    Parameters
    ----------
    embeddings : Tensor, float32 (images, dim)
    labels : Tensor, int64 (images,)
        −1 = unknown: such images are in the pool only.
    halves : mapping
        Labels of each half of the classes.
    parents : mapping
        Parents of labels; empty leaves the related sets out.
    top_k : int
        Images of a set, K: as equally from its classes as they go.
    sets : int
        Sets of each kind, half of them in each half of the classes. A set that came up before
        is left out.
    seed : int

    Returns
    -------
    Suite

    Raises
    ------
    InputError
        K is larger than nearly every class's part for the sets.
    """
    every = sorted(label for half in halves.values() for label in half)
    usable, pool = split_images(labels, top_k, seed)
    notes = []
    small = [label for label in every if label not in usable]
    if small:
        notes.append(f"{len(small)} classes have fewer than {top_k} images for sets: left out")
    kept = {half: [c for c in classes if c in usable] for half, classes in halves.items()}
    plans, short = plan_units(kept, parents, sets, (NOISE,), seed, repeat=True)
    everything = {half: torch.cat([usable[c] for c in own]) for half, own in kept.items() if own}
    found: dict[tuple[int, ...], Plan] = {}
    for place, plan in enumerate(plans):
        key = hash_keys(seed, string_key("validation/mix/draw"), place)
        found.setdefault(_draw(plan, usable, everything[plan.half], top_k, key), plan)
    if len(found) < len(plans):
        notes.append(f"{len(plans) - len(found)} sets came up twice and were left out")
    image_ids = torch.tensor(list(found))
    return Suite(
        name=NAME,
        plans=list(found.values()),
        image_ids=image_ids,
        embeddings=embeddings[image_ids],
        labels=labels[image_ids],
        pool=embeddings[pool],
        weights=None,
        bottom=None,
        notes=(*notes, *short),
    )


def split_images(labels: Tensor, top_k: int, seed: int) -> tuple[dict[int, Tensor], Tensor]:
    """Split each class's images between the sets and the pool.

    Returns
    -------
    dict of int to Tensor
        By label: int64 ids of the images for sets, of classes with at least ``top_k`` of them.
    Tensor
        int64 (n,), ids of the pool's images, ascending; unlabelled images are among them.

    Raises
    ------
    InputError
        K is larger than nearly every class's part for the sets.
    """
    keys = hash_keys(seed, string_key("validation/mix/split"), torch.arange(len(labels)))
    usable: dict[int, Tensor] = {}
    pool = [torch.nonzero(labels < 0)[:, 0]]
    present = torch.unique(labels[labels >= 0]).tolist()
    for label in present:
        own = torch.nonzero(labels == label)[:, 0]
        own = own[torch.argsort(keys[own], stable=True)]
        middle = int(POOL_SHARE * len(own))
        pool.append(own[:middle])
        if len(own) - middle >= top_k:
            usable[label] = own[middle:]
    check_classes(
        sorted(usable),
        f"sets of {top_k} images",
        len(present),
        f"a smaller --top-k (a set's images come from {1 - POOL_SHARE:.0%} of a class's), or "
        "more images per class",
    )
    return usable, torch.cat(pool).sort().values


def _draw(
    plan: Plan, usable: Mapping[int, Tensor], everything: Tensor, top_k: int, key: Tensor
) -> tuple[int, ...]:
    """Ascending ids of a set's images."""
    sources = [usable[label] for label in plan.classes] or [everything]
    share, rest = divmod(top_k, len(sources))
    chosen: list[int] = []
    for place, images in enumerate(sources):
        order = torch.argsort(hash_keys(key, images), stable=True)
        chosen += images[order[: share + (place < rest)]].tolist()
    return tuple(sorted(chosen))
