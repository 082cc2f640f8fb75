"""Normalised mutual information from counted probabilities, and its law under permutation."""

from __future__ import annotations

import itertools
import math
from collections import Counter


def normalized_mutual_information(assignments: list[int], labels: list[int]) -> float:
    """2·I / (H + H), natural logarithms; negative entries are left out; 0 without entropy."""
    pairs = [(a, b) for a, b in zip(assignments, labels, strict=True) if a >= 0 and b >= 0]
    n = len(pairs)
    joint = Counter(pairs)
    first, second = Counter(a for a, _ in pairs), Counter(b for _, b in pairs)
    if len(first) < 2 or len(second) < 2:
        return 0.0
    mutual = math.fsum(
        c / n * math.log((c / n) / ((first[a] / n) * (second[b] / n)))
        for (a, b), c in joint.items()
    )
    entropy = [-math.fsum(c / n * math.log(c / n) for c in x.values()) for x in (first, second)]
    return max(0.0, 2 * mutual / (entropy[0] + entropy[1]))


def all_permutations(assignments: list[int], labels: list[int]) -> list[float]:
    """The NMI under every permutation of the labels; no unknowns, few patches."""
    return [
        normalized_mutual_information(assignments, list(shuffled))
        for shuffled in itertools.permutations(labels)
    ]
