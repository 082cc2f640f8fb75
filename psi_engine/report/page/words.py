"""The components, their nulls and the peers' measures, in plain words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from psi_engine.types import COMPONENTS

QUESTIONS = {
    "s": "Do its patches fall into separate groups?",
    "q": "Do the groups follow the images’ classes?",
    "d": "Do the groups have different names?",
}

MEASURED = {
    "s": "silhouette of the clustering: 1 = far apart, 0 = overlapping",
    "q": "normalised mutual information of groups and class labels: 1 = they agree, 0 = unrelated",
}

D_MEASURED = {
    "margin": "how much better a patch fits its group’s name than the nearest name of another",
    "contrast": "how much better a group fits its own best concept than other groups do",
    "gap": "best minus second-best similarity of a group to the concepts",
}

CHANCE = {
    ("s", "pool"): "as many random patches of this layer, grouped the same way",
    ("s", "neighborhood"): "equally coherent sets of patches of one kind, grouped the same way",
    ("s", "rotation"): "its patches, each turned at random in the embedding space",
    ("s", "rotation-samples"): "its patches with their deviations turned at random, regrouped",
    ("s", "rotation-tangent"): "its patches turned at random about their mean, regrouped",
    ("s", "rotation-shared"): "all its patches turned together, which changes no distance",
    ("q", "permutation"): "the same labels, shuffled over its patches",
    ("q", "exact"): "the same labels, over all their permutations",
    ("d", "text-rotation"): "the same concepts, turned at random in the embedding space",
    ("d", "unrelated-text"): "as many concepts from unrelated domains",
    ("d", "text-shuffle"): (
        "texts whose coordinates were shuffled between the concepts: "
        "same spread in every coordinate, no meaning"
    ),
    ("d", "partition"): "the same patches, split into groups at random",
    ("d", "pool"): "as many random patches of this layer, grouped and named the same way",
    ("d", "neighborhood"): "equally coherent sets of patches of one kind, grouped and named",
}

PEERS = {
    "semanticlens_polysemanticity": ("SemanticLens polysemanticity", "higher = more polysemantic"),
    "semanticlens_redundancy": ("SemanticLens redundancy", "cosine to the most alike channel"),
    "monosemanticity": ("Monosemanticity score", "higher = its patches are more alike"),
    "pure_intra": ("PURE, within clusters", "mean distance inside its groups"),
    "pure_inter": ("PURE, between clusters", "mean distance between its groups"),
}
"""Measures of other papers, by column of ``channels.parquet``: a name and how to read it."""

VERDICTS = {
    "polysemantic": "all components beat chance: its patches fall into groups of their own",
    "monosemantic": "its patches are more alike than random ones, not shown to be several kinds",
    "random-like": "its patches cannot be told from random patches of the layer",
    "not scorable": "there was not enough to test",
}


class Used(NamedTuple):
    """A null that was drawn from, and how often for each channel."""

    null: str
    draws: int


def components(
    present: Mapping[str, bool], score: Mapping[str, Any], used: Mapping[str, Sequence[Used]]
) -> list[dict[str, Any]]:
    """What each component of a run asks, measures and is held against.

    Parameters
    ----------
    present : Mapping[str, bool]
        Whether any channel has the component.
    score : Mapping
        The settings of the scorer, as the manifest holds them.
    used : Mapping[str, sequence of Used]
        The nulls each component was held against, one or more.

    Returns
    -------
    list of dict
        ``key``, ``name``, ``question``, ``measured``, ``null`` and ``chance`` (several joined by
        "or") and ``draws``, the fewest.
    """
    measured = MEASURED | {"d": D_MEASURED[score["d_measure"]]}
    return [
        {
            "key": x,
            "name": x.upper(),
            "question": QUESTIONS[x],
            "measured": measured[x],
            "null": " or ".join(dict.fromkeys(each.null for each in used[x])),
            "chance": " or ".join(dict.fromkeys(CHANCE[x, each.null] for each in used[x])),
            "draws": min(each.draws for each in used[x]),
        }
        for x in COMPONENTS
        if present[x]
    ]
