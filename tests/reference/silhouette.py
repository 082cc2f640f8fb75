"""Cosine silhouette after Rousseeuw (1987), one patch and one distance at a time."""

from __future__ import annotations

import math

import numpy as np

COINCIDE = 2.0**-20


def silhouette(gram: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Silhouette of each patch with distance 1 − gram; label −1 is left out and gets NaN."""
    n = len(labels)
    values = np.full(n, math.nan)
    for i in range(n):
        if labels[i] < 0:
            continue
        own = []
        others: dict[int, list[float]] = {}
        for j in range(n):
            if labels[j] < 0 or j == i:
                continue
            distance = 1.0 - float(gram[i, j])
            if labels[j] == labels[i]:
                own.append(distance)
            else:
                others.setdefault(int(labels[j]), []).append(distance)
        if not own or not others:
            values[i] = 0.0
            continue
        a = math.fsum(own) / len(own)
        b = min(math.fsum(x) / len(x) for x in others.values())
        values[i] = 0.0 if max(a, b) < COINCIDE else (b - a) / max(a, b)
    return values
