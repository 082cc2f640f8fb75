"""Exact tests of p-values made by ranking among M draws.

With exchangeable draws p ≤ α means: above the j-th largest draw, j = ⌊α(M + 1)⌋. A channel with
draws of its own does that with chance j/(M + 1), so rejections are binomial. Channels that share
one table all pass the same draw with a common chance, Beta(j, M + 1 − j): beta-binomial. The
dependence is therefore not guessed but part of the law.
"""

import importlib
import math

import pytest
import torch
from scipy import stats

from psi_engine.statistics import TIE

ALARM = 1e-3
"""Chance of a false alarm of one test."""

LEVELS = (0.01, 0.05, 0.1)

# channels and replicates, where they share a table and where each has draws of its own
SHARED = [
    pytest.param(600, 599, id="quick"),
    pytest.param(8000, 5999, id="long", marks=pytest.mark.slow),
]
OWN = [
    pytest.param(400, 99, id="quick"),
    pytest.param(4000, 99, id="long", marks=pytest.mark.slow),
]


def rejection_law(channels, replicates, level, shared):
    """Law of the number of channels with p ≤ level."""
    reached = math.floor(level * (replicates + 1) + 1e-9)
    if shared:
        return stats.betabinom(channels, reached, replicates + 1 - reached)
    return stats.binom(channels, reached / (replicates + 1))


def power(channels, replicates, shared, rate=0.07, level=0.05):
    """Chance that :func:`assert_super_uniform` notices ``rate`` rejections at ``level``."""
    critical = rejection_law(channels, replicates, level, shared).isf(ALARM)
    return float(rejection_law(channels, replicates, rate, shared).sf(critical))


def assert_super_uniform(p, replicates, *, shared, levels=LEVELS):
    for level in levels:
        count = int((p <= level + 1e-12).sum())
        chance = rejection_law(len(p), replicates, level, shared).sf(count - 1)
        assert chance > ALARM, f"{count / len(p):.4f} at {level}: chance {chance:.1e}"


def assert_uniform(p, replicates, *, shared, equal=None, seed=0):
    """Kolmogorov–Smirnov after spreading each p over the ranks it stands for.

    ``equal`` counts the draws that equal the observation, by default none. With exchangeable
    draws p − U·(1 + equal)/(M + 1) is uniform on [0, 1], ties or not. A shared table is a second
    sample of size M, so the statistic has the law of C·M/(C + M) values.
    """
    generator = torch.Generator().manual_seed(seed)
    part = torch.rand(len(p), generator=generator, dtype=torch.float64)
    equal = 0 if equal is None else equal
    spread = p - part * (1 + equal) / (replicates + 1)
    size = len(p) * replicates // (len(p) + replicates) if shared else len(p)
    distance = stats.kstest(spread.numpy(), "uniform").statistic
    chance = stats.kstwo.sf(distance, size)
    assert chance > ALARM, f"distance {distance:.4f}: chance {chance:.1e}"


def rate(p, level=0.05):
    return float((p <= level + 1e-12).double().mean())


def seen_ties(null, batch, call, monkeypatch):
    """The null's result, and how many of each channel's draws equal what was observed."""
    module = importlib.import_module(null.__module__)
    counted = []
    summarise = module.summarise

    def spy(observed, draws):
        counted.append(((draws - observed[:, None]).abs() <= TIE).sum(1))
        return summarise(observed, draws)

    with monkeypatch.context() as patch:  # taken off again: a test may look many times
        patch.setattr(module, "summarise", spy)
        result = null(batch, call)
    (equal,) = counted
    return result, equal
