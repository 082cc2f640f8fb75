"""Cosine K-means, slowly: every partition for small sets, and the objective by its definition."""

from __future__ import annotations

import itertools

import numpy as np


def objective(z: np.ndarray, labels: np.ndarray) -> float:
    """Sum over clusters of the length of the sum of their unit vectors."""
    total = 0.0
    for j in sorted(set(labels.tolist()) - {-1}):
        vector = np.zeros(z.shape[1])
        for i in range(len(z)):
            if labels[i] == j:
                vector = vector + z[i].astype(np.float64)
        total += float(np.sqrt(vector @ vector))
    return total


def best_partition(z: np.ndarray, k: int) -> float:
    """The greatest objective over all partitions of z into exactly k clusters."""
    best = -np.inf
    for labels in itertools.product(range(k), repeat=len(z) - 1):
        full = np.array([0, *labels])
        if len(set(full.tolist())) == k:
            best = max(best, objective(z, full))
    return best


def improving_move(z: np.ndarray, labels: np.ndarray, tolerance: float) -> bool:
    """Whether moving one vector to another cluster, without emptying its own, gains more."""
    now = objective(z, labels)
    clusters = sorted(set(labels.tolist()) - {-1})
    for i in range(len(z)):
        if labels[i] < 0 or (labels == labels[i]).sum() == 1:
            continue
        for j in clusters:
            moved = labels.copy()
            moved[i] = j
            if objective(z, moved) > now + tolerance:
                return True
    return False


def first_member_order(labels: np.ndarray) -> np.ndarray:
    """Clusters renumbered in the order in which they first appear; −1 stays."""
    names: dict[int, int] = {}
    out = labels.copy()
    for i, label in enumerate(labels.tolist()):
        if label >= 0:
            out[i] = names.setdefault(label, len(names))
    return out
