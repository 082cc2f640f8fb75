"""D by the letter: one cluster, one text at a time, in float64."""

import numpy as np


def unit(x):
    return x / np.linalg.norm(x)


def concept_texts(texts, concept_ids):
    def mean_of(concept):
        members = [unit(texts[i]) for i in range(len(texts)) if concept_ids[i] == concept]
        return unit(sum(members) / len(members))

    return np.array([mean_of(concept) for concept in sorted(set(concept_ids.tolist()))])


def similarities(z, assignments, texts):
    """Cluster × text cosines of the clusters that have members, in order of their number."""
    table = []
    for j in sorted(set(assignments.tolist()) - {-1}):
        prototype = unit(sum(unit(z[i]) for i in range(len(z)) if assignments[i] == j))
        table.append([float(prototype @ unit(t)) for t in texts])
    return table


def gap(z, assignments, texts):
    gaps = []
    for row in similarities(z, assignments, texts):
        ordered = sorted(row, reverse=True)
        gaps.append(ordered[0] - ordered[1])
    return sum(gaps) / len(gaps)


def contrast(z, assignments, texts):
    table = similarities(z, assignments, texts)
    values = []
    for j, row in enumerate(table):
        best = row.index(max(row))
        values.append(row[best] - max(other[best] for l, other in enumerate(table) if l != j))
    return sum(values) / len(values)


def margin(z, assignments, texts, centre=0.0):
    """Every patch once: its cluster's mean against its own name and the nearest other name."""
    numbers = sorted(set(assignments.tolist()) - {-1})
    table, sizes = [], []
    for j in numbers:
        members = [unit(z[i]) for i in range(len(z)) if assignments[i] == j]
        mean = sum(members) / len(members) - centre
        table.append([float(mean @ unit(t)) for t in texts])
        sizes.append(len(members))
    names = [row.index(max(row)) for row in table]
    total = 0.0
    for l, row in enumerate(table):
        others = [row[name] for j, name in enumerate(names) if j != l]
        total += sizes[l] * (row[names[l]] - max(others) if others else 0.0)
    return total / sum(sizes)


MEASURES = {"gap": gap, "contrast": contrast, "margin": margin}


def of_table(table, weights, kind):
    """Weighted mean of a measure over the clusters that exist; table[cluster][text]."""
    there = [j for j in range(len(table)) if weights[j] > 0]
    names = {j: table[j].index(max(table[j])) for j in there}
    total = 0.0
    for j in there:
        others = [l for l in there if l != j]
        if kind == "gap":
            rival = sorted(table[j])[-2]
        elif not others:
            return 0.0
        elif kind == "contrast":
            rival = max(table[l][names[j]] for l in others)
        else:
            rival = max(table[j][names[l]] for l in others)
        total += weights[j] * (table[j][names[j]] - rival)
    return total / sum(weights) if there else 0.0
