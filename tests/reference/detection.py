"""AUROC and average precision by loops over pairs and thresholds, float64."""

from __future__ import annotations


def auroc(high: list[float], low: list[float]) -> float:
    total = 0.0
    for one in high:
        for other in low:
            total += 1.0 if one > other else 0.5 if one == other else 0.0
    return total / (len(high) * len(low))


def average_precision(high: list[float], low: list[float]) -> float:
    total, recall_before = 0.0, 0.0
    for threshold in sorted({*high, *low}, reverse=True):
        true = sum(1 for x in high if x >= threshold)
        false = sum(1 for x in low if x >= threshold)
        recall = true / len(high)
        total += (recall - recall_before) * true / (true + false)
        recall_before = recall
    return total
