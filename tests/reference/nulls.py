"""Nulls by the letter: rotate the features themselves, enumerate permutations, fit by loops."""

import itertools
import math

import numpy as np


def haar(dim, rng):
    """A Haar-distributed orthogonal matrix (Mezzadri, Notices AMS 54, 2007)."""
    q, r = np.linalg.qr(rng.standard_normal((dim, dim)))
    return q * np.sign(np.diagonal(r))


def rotated_one_by_one(z, rng):
    """Each row turned by a Haar rotation of its own."""
    return np.array([row @ haar(z.shape[1], rng) for row in z])


def rotated_features(z, q):
    """Rows of Q·Z normalised again."""
    rows = q @ z
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def rotated_in_tangent(z, q):
    """Rotate z_i/(μ·z_i) − μ in sample space and project back to the sphere."""
    mu = z.sum(0) / np.linalg.norm(z.sum(0))
    y = np.array([row / (mu @ row) - mu for row in z])
    rows = mu + q @ y
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def nmi(a, b):
    n = len(a)

    def entropy(values):
        return -sum(values.count(v) / n * math.log(values.count(v) / n) for v in set(values))

    first, second = entropy(list(a)), entropy(list(b))
    if first <= 1e-12 or second <= 1e-12:
        return 0.0
    mutual = first + second - entropy(list(zip(a, b, strict=True)))
    return 2 * mutual / (first + second)


def all_permutation_scores(assignments, labels, score):
    return [score(assignments, list(order)) for order in itertools.permutations(labels)]


def local_line(at, where, values, window):
    """Tricube-weighted straight line through the nearest ``window`` points, at one place."""
    distance = [abs(at - x) for x in where]
    reach = sorted(distance)[window - 1] * (1 + 1e-9) + 1e-12
    weight = [max(0.0, 1 - (d / reach) ** 3) ** 3 for d in distance]
    design = np.array([[1.0, x - at] for x in where])
    root = np.sqrt(weight)
    fit, *_ = np.linalg.lstsq(design * root[:, None], np.asarray(values) * root, rcond=None)
    return float(fit[0])
