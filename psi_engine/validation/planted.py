"""Planted units: a virtual layer on a real classifier's logits, mined like any other.

=====================  ===================================================================
``mono``               standardised log odds of one class
``polyN-…``            the largest of the standardised log odds of N classes
``noise-value``        a random number per image
``noise-projection``   a random projection of the log odds of all classes
=====================  ===================================================================

Log odds (the logit of the probability), because a raw logit also grows with whatever makes all
logits of an image large; standardised over the images of the own class, so that every class of
a poly unit gets its share of the strongest images. A projection takes the log odds standardised
over all images, with weights that sum to zero: neither one class nor the overall confidence
dominates it. It is not noise: its direction has classes at its end. Of 100 such units on a
ResNet-50's logits for 20,000 images of Tiny-ImageNet the 50 strongest images hold as many classes
as 4 to 14 equally frequent ones (1/Σp², 10th to 90th percentile; ``poly5`` 4.8 to 5.5,
``noise-value`` 37 to 45). So it is a kind of its own, with a headline of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from psi_engine.config import MineConfig
from psi_engine.demo.planted import log_odds
from psi_engine.errors import InputError
from psi_engine.mining import Miner
from psi_engine.nulls.draws import normals
from psi_engine.ops.random import hash_keys, string_key, uniform
from psi_engine.patches import collect_patches
from psi_engine.types import ActivationShape, Mined, ReceptiveField
from psi_engine.validation.plan import Plan, plan_units
from psi_engine.validation.relations import Parents
from psi_engine.validation.suite import Suite, check_classes

NAME = "planted-units"
NOISE = ("noise-value", "noise-projection")
LEAST_PURITY = 0.5
"""Share of a class's top K images that must be of the class, or its unit is not what it says."""

_IMAGES_AT_ONCE = 256
# Fixed: the bits of an image's activations must not depend on anything else.


class Outputs(NamedTuple):
    """The classifier's outputs that answer to classes of the data.

    labels : the classes, ascending. odds : float32 (images, classes), their log odds among
    themselves. clean : the classes whose top images are mostly theirs. dropped : why the others
    are not used.
    """

    labels: list[int]
    odds: Tensor
    clean: list[int]
    dropped: dict[int, str]


def planted_units(
    logits: Tensor,
    embeddings: Tensor,
    labels: Tensor,
    halves: Mapping[str, list[int]],
    parents: Parents,
    *,
    top_k: int,
    pool: int,
    units: int,
    seed: int,
) -> Suite:
    """Plant the units, mine them, and collect their patches.

    Parameters
    ----------
    logits : Tensor, float32 (images, outputs)
        Of the classifier on every image.
    embeddings : Tensor, float32 (images, dim)
        Of the whole images: a flat layer has no position, so a patch is its image.
    labels : Tensor, int64 (images,)
    halves, parents
        As for :func:`psi_engine.validation.concept_mix.concept_mix`.
    top_k, pool : int
        Sites mined per unit (top and bottom) and for the pool.
    units : int
        Units of each kind, no two with the same classes.

    Returns
    -------
    Suite

    Raises
    ------
    InputError
        Too few classes have an output of their own.
    """
    outputs = match_outputs(logits, labels, top_k)
    every = sorted(label for half in halves.values() for label in half)
    reasons = "; ".join(sorted(set(outputs.dropped.values())))
    check_classes(
        outputs.clean,
        "planted units: the model's outputs do not tell the data's classes apart",
        len(every),
        f"a model trained on these classes, or a smaller --top-k ({reasons or 'no class'})",
    )
    kept = {half: [c for c in own if c in outputs.clean] for half, own in halves.items()}
    plans, notes = plan_units(kept, parents, units, NOISE, seed, repeat=False)
    values = activations(outputs, labels, plans, seed)
    config = MineConfig(top_k=top_k, bottom_k=top_k, reservoir=0, pool=pool, seed=seed)
    miner = Miner(NAME, ActivationShape("flat", len(plans), (1, 1)), config)
    ids = torch.arange(len(labels))
    for part in ids.split(_IMAGES_AT_ONCE):
        miner.update(values[part, :, None, None], part)
    mined = miner.result()
    side = 1  # any: the box is the whole image
    field = ReceptiveField((side, side), (side, side), (side / 2, side / 2), "image")
    patches = collect_patches(Mined({NAME: mined}), {NAME: field}, side, ("top", "bottom", "pool"))
    crops = embeddings[patches.boxes.image_ids]
    if outputs.dropped:
        notes.insert(0, f"{len(outputs.dropped)} of {len(every)} classes are left out: {reasons}")
    return Suite(
        name=NAME,
        plans=plans,
        image_ids=mined.image_ids,
        embeddings=crops[patches.rows[NAME, "top"]],
        labels=labels[mined.image_ids],
        pool=crops[patches.rows[NAME, "pool"]],
        weights=mined.unit_range,
        bottom=crops[patches.rows[NAME, "bottom"]],
        notes=tuple(notes),
    )


def match_outputs(logits: Tensor, labels: Tensor, top_k: int) -> Outputs:
    """Find which output answers to which class of the data.

    A class's output is the one whose log probability is on average highest over the class's
    images, compared with its average over all images: without that, outputs that are likely on
    any image win (of Tiny-ImageNet's 200 classes 31 met in an output of a ResNet-50, with it 2).
    Classes that meet in one output are dropped, as are those whose top K images by their own
    log odds are mostly of other classes.

    Parameters
    ----------
    logits : Tensor, float32 (images, outputs)
    labels : Tensor, int64 (images,)
        −1 = unknown.

    Raises
    ------
    InputError
        Fewer than two classes have an output of their own.
    """
    present = torch.unique(labels[labels >= 0]).tolist()
    chances = logits.log_softmax(1).double()
    usual = chances.mean(0)
    best = {c: int((chances[labels == c].mean(0) - usual).argmax()) for c in present}
    shared = {c for c in present if list(best.values()).count(best[c]) > 1}
    dropped = dict.fromkeys(sorted(shared), "another class has the same output")
    own = [c for c in present if c not in shared]
    if len(own) < 2:
        raise InputError(
            "the model's outputs do not tell the data's classes apart",
            got=f"{len(set(best.values()))} outputs for {len(present)} classes",
            expected="an output for each class",
            fix="give a model trained on these classes",
        )
    chosen = logits[:, [best[c] for c in own]]
    odds = torch.cat([log_odds(part) for part in chosen.split(_IMAGES_AT_ONCE)])
    clean = []
    for column, label in enumerate(own):
        top = torch.sort(odds[:, column], descending=True, stable=True).indices[:top_k]
        if (labels[top] == label).double().mean() < LEAST_PURITY:
            dropped[label] = f"fewer than {LEAST_PURITY:.0%} of the top {top_k} images are its own"
        else:
            clean.append(label)
    return Outputs(own, odds, clean, dropped)


def activations(outputs: Outputs, labels: Tensor, plans: list[Plan], seed: int) -> Tensor:
    """Activations of the planned units: float32 (images, units)."""
    odds = outputs.odds.double()
    column = {label: place for place, label in enumerate(outputs.labels)}
    standard = torch.empty_like(odds)
    for label, place in column.items():
        own = odds[labels == label, place]
        spread = own.std() if len(own) > 1 else own.new_ones(())
        standard[:, place] = (odds[:, place] - own.mean()) / spread.clamp(min=1e-6)
    overall = (odds - odds.mean(0)) / odds.std(0).clamp(min=1e-6)
    images = torch.arange(len(odds))
    values = torch.empty(len(odds), len(plans), dtype=torch.float32)
    for unit, plan in enumerate(plans):
        key = hash_keys(seed, string_key(f"validation/{plan.kind}"), unit)
        if plan.classes:
            values[:, unit] = standard[:, [column[c] for c in plan.classes]].amax(1)
        elif plan.kind == "noise-value":
            values[:, unit] = uniform(key, images)
        else:
            weights = normals(key, torch.arange(odds.shape[1]))
            values[:, unit] = overall @ (weights - weights.mean())
    return values
