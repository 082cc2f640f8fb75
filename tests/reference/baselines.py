"""Peers' measures by the letter: loops over pairs."""

import numpy as np


def cosine(a, b):
    return float(a @ b / np.sqrt((a @ a) * (b @ b)))


def clarity(z):
    n = len(z)
    return sum(cosine(z[i], z[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))


def redundancy(channels):
    means = [z.mean(0) for z in channels]
    return [
        max(cosine(means[i], means[j]) for j in range(len(means)) if j != i)
        for i in range(len(means))
    ]


def monosemanticity(z, a):
    top = bottom = 0.0
    for i in range(len(z)):
        for j in range(i + 1, len(z)):
            top += a[i] * a[j] * cosine(z[i], z[j])
            bottom += a[i] * a[j]
    return top / bottom


def within_and_between(z, labels):
    pairs = {True: [], False: []}
    for i in range(len(z)):
        for j in range(i + 1, len(z)):
            pairs[bool(labels[i] == labels[j])].append(np.linalg.norm(z[i] - z[j]))
    return np.mean(pairs[True]), np.mean(pairs[False])


def scaled(a):
    return (a - a.min()) / (a.max() - a.min())


def right_answer(query_high, query_low, high, low, temperature=None):
    """Probability that a softmax over matched and mismatched similarity answers rightly."""
    table = [[cosine(q, e) for e in [*high, *low]] for q in (query_high, query_low)]
    n = len(high)
    matched = np.mean(table[0][:n]) + np.mean(table[1][n:])
    mismatched = np.mean(table[0][n:]) + np.mean(table[1][:n])
    scale = np.std(table) if temperature is None else temperature
    right, wrong = np.exp(matched / scale), np.exp(mismatched / scale)
    return right / (right + wrong)
