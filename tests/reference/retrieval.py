"""Search by the letter: one prototype at a time, in float64."""

import math


def unit(x):
    length = math.sqrt(sum(a * a for a in x))
    return [a / length for a in x]


def less(x, y):
    return [a - b for a, b in zip(x, y, strict=True)]


def mean(rows):
    return [sum(column) / len(rows) for column in zip(*rows, strict=True)]


def cosine(x, y):
    return sum(a * b for a, b in zip(unit(x), unit(y), strict=True))


def nearest(rows, query, count, allowed=None):
    """Numbers of the rows of the greatest cosine, ties by number, and the cosines."""
    kept = [i for i in range(len(rows)) if allowed is None or allowed[i]]
    found = sorted(kept, key=lambda i: (-cosine(rows[i], query), i))[:count]
    return found, [cosine(rows[i], query) for i in found]


def text_similarity(prototype, pool, templates, vocabulary):
    """Prototype less the pool's mean against text less the vocabulary's.

    templates : embeddings of the query in each template. vocabulary : of each concept, likewise.
    """
    concepts = [unit(mean([unit(row) for row in rows])) for rows in vocabulary]
    query = unit(mean([unit(row) for row in templates]))
    centre = mean([unit(row) for row in pool])
    return cosine(less(prototype, centre), less(query, mean(concepts)))
