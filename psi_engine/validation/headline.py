"""The few rows of the ground-truth table that a screen or a figure shows."""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from psi_engine.validation.contrasts import WORST

BEST_OF_EACH = 3
"""Combinations shown per name and labels, the best on the tuning half."""

FAMILIES = ("peer", "component", "control")
"""Families shown whole; the others are combinations."""


def headline(table: pa.Table, suite: str) -> list[dict[str, Any]]:
    """Measures of a suite by their worst contrast on held-out classes.

    Components, peers and controls are listed whole. Of the many combinations the best few per
    name and labels are listed, chosen on the tuning half, so that no held-out figure was picked
    by its own value.

    Returns
    -------
    list of dict
        ``measure, family, labels`` and, for each relation there is (``unrelated``, ``related``),
        ``RELATION``, ``RELATION_low``, ``RELATION_high``: AUROC on the held-out half. Families
        in the order of :data:`FAMILIES`, combinations last; best first within each.
    """
    rows = [row for row in table.to_pylist() if row["suite"] == suite]
    tuning = {
        row["measure"]: row["auroc"]
        for row in rows
        if row["half"] == "tuning" and row["contrast"] == WORST["unrelated"]
    }
    found: dict[str, dict[str, Any]] = {}
    for row in rows:
        if row["half"] != "held-out":
            continue
        for relation, name in WORST.items():
            if row["contrast"] == name:
                about = {key: row[key] for key in ("measure", "family", "labels")}
                entry = found.setdefault(row["measure"], about)
                for end in ("", "_low", "_high"):
                    entry[relation + end] = row["auroc" + end]
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for entry in found.values():
        key = (entry["family"], "" if entry["family"] in FAMILIES else entry["labels"])
        groups.setdefault(key, []).append(entry)
    chosen: list[dict[str, Any]] = []
    for family, _ in sorted(groups, key=_place):
        whole = family in FAMILIES
        members = groups.pop((family, _))
        members.sort(key=lambda entry: -tuning.get(entry["measure"], 0.0))
        members = members if whole else members[:BEST_OF_EACH]
        chosen += sorted(members, key=lambda entry: -entry.get("unrelated", 0.0))
    return chosen


def _place(key: tuple[str, str]) -> tuple[int, str, str]:
    family, labels = key
    return (FAMILIES.index(family) if family in FAMILIES else len(FAMILIES), family, labels)
