"""Calibration by the letter: loops over floats."""

import math
from fractions import Fraction


def summary(observed, draws):
    mean = sum(draws) / len(draws)
    std = math.sqrt(sum((x - mean) ** 2 for x in draws) / (len(draws) - 1))
    p = (1 + sum(1 for x in draws if x >= observed)) / (1 + len(draws))
    return mean, std, p


def quantiles(draws):
    """At i/40: the order statistic there, or the straight line between its neighbours."""
    ordered = sorted(draws)
    out = []
    for i in range(41):
        place = Fraction(i * (len(ordered) - 1), 40)
        low = place.numerator // place.denominator
        share = float(place - low)
        step = ordered[low + 1] - ordered[low] if share else 0.0
        out.append(ordered[low] + share * step)
    return out


def z_score(observed, mean, std):
    if abs(observed - mean) < 1e-6 and std < 1e-6:
        return 0.0
    return (observed - mean) / (std + 1e-6)


def log_sigmoid(z):
    return -math.log1p(math.exp(-z)) if z > 0 else z - math.log1p(math.exp(z))


def adjusted(p, method):
    """Step-up procedure: the least p·m·c/rank over this and all greater p."""
    m = len(p)
    factor = sum(1 / i for i in range(1, m + 1)) if method == "by" else 1.0
    order = sorted(range(m), key=lambda i: p[i])
    out = [0.0] * m
    for rank, i in enumerate(order):
        later = [p[order[j]] * m * factor / (j + 1) for j in range(rank, m)]
        out[i] = min(1.0, min(later))
    return out
