"""Paired tests written out: loops over pairs, over all signs, over sorted p-values."""

from __future__ import annotations

import itertools
import math


def paired_t(x: list[float], y: list[float]) -> tuple[float, float]:
    """The t statistic and Cohen's dz."""
    change = [a - b for a, b in zip(x, y, strict=True)]
    n = len(change)
    mean = sum(change) / n
    spread = math.sqrt(sum((c - mean) ** 2 for c in change) / (n - 1))
    return mean / (spread / math.sqrt(n)), mean / spread


def mean_ranks(values: list[float]) -> list[float]:
    ranks = []
    for v in values:
        below = sum(w < v for w in values)
        equal = sum(w == v for w in values)
        ranks.append(below + (equal + 1) / 2)
    return ranks


def signed_ranks(x: list[float], y: list[float]) -> tuple[float, float, float]:
    """Wilcoxon's statistic, its p over all signs, and the rank-biserial correlation."""
    change = [a - b for a, b in zip(x, y, strict=True) if a != b]
    ranks = mean_ranks([abs(c) for c in change])
    plus = sum(r for r, c in zip(ranks, change, strict=True) if c > 0)
    minus = sum(r for r, c in zip(ranks, change, strict=True) if c < 0)
    extreme = 0
    for signs in itertools.product((0, 1), repeat=len(ranks)):
        positive = sum(r for r, s in zip(ranks, signs, strict=True) if s)
        extreme += min(positive, sum(ranks) - positive) <= min(plus, minus)
    return min(plus, minus), extreme / 2 ** len(ranks), (plus - minus) / (plus + minus)


def holm(p: list[float]) -> list[float]:
    """Step down: the least p times the number of tests, the next times one fewer, …"""
    left = sorted(range(len(p)), key=lambda i: p[i])
    out, least = [0.0] * len(p), 0.0
    for place, i in enumerate(left):
        least = max(least, p[i] * (len(p) - place))
        out[i] = min(1.0, least)
    return out
