"""The few rows of the ground-truth table that a screen or a figure shows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from psi_engine.artifacts import MANIFEST
from psi_engine.config import ScoreConfig
from psi_engine.errors import InputError
from psi_engine.validation.contrasts import PROJECTION, WORST
from psi_engine.validation.measures import CANDIDATES, LABELS, combined_name

BEST_OF_EACH = 1
"""Combinations shown per name and labels, the best on the tuning half."""

FAMILIES = ("peer", "component", "control")
"""Families that are no combinations."""

PRESET = ScoreConfig()
"""The calibrated preset: its own combinations are always shown."""

TABLE = "ground_truth.parquet"
"""The whole table, in the output folder."""


def summarise(folder: Path) -> dict[str, Any]:
    """What a finished ground-truth folder says, in few words.

    Returns
    -------
    dict
        ``ground_truth`` (the folder), ``suites`` (name → :func:`headline`), ``counts``,
        ``notes`` (suite → texts) and ``seconds`` of the manifest.

    Raises
    ------
    InputError
        The folder is not finished.
    """
    if not (folder / TABLE).is_file():
        raise InputError(
            "the folder holds no finished ground truth", got=str(folder), expected=TABLE
        )
    table = pq.read_table(folder / TABLE)
    manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    suites = {name: headline(table, name) for name in table["suite"].unique().to_pylist()}
    kept = {name: manifest[name] for name in ("counts", "notes", "seconds")}
    return {"ground_truth": str(folder), "suites": suites, **kept}


def headline(table: pa.Table, suite: str) -> list[dict[str, Any]]:
    """Measures of a suite by their worst contrast on held-out classes.

    Peers are listed whole; components and controls raw and under the nulls a preset could take,
    D at the preset's level. Of the many combinations PSI under the calibrated preset is listed,
    and the best per name and labels, chosen on the tuning half, so that no held-out figure was
    picked by its own value. A control has the contrast of unrelated classes that is furthest from
    0.5, where it should be.

    Returns
    -------
    list of dict
        ``measure, family, labels`` and, for each headline of
        :data:`psi_engine.validation.contrasts.WORST` there is (``unrelated``, ``related``,
        ``projection``), ``NAME``, ``NAME_low``, ``NAME_high``: AUROC on the held-out half. Families
        in the order of :data:`FAMILIES`, combinations last; best first within each.
    """
    rows = [row for row in table.to_pylist() if row["suite"] == suite and _shown(row)]
    tuning = {
        row["measure"]: row["auroc"]
        for row in rows
        if row["half"] == "tuning" and row["contrast"] == WORST["unrelated"]
    }
    found: dict[str, dict[str, Any]] = {}
    for row in rows:
        if row["half"] != "held-out":
            continue
        for name, title in WORST.items():
            if row["contrast"] == title and row["family"] != "control":
                about = {key: row[key] for key in ("measure", "family", "labels")}
                entry = found.setdefault(row["measure"], about)
                for end in ("", "_low", "_high"):
                    entry[name + end] = row["auroc" + end]
    for row in _furthest_controls(rows):
        about = {key: row[key] for key in ("measure", "family", "labels")}
        ends = {f"unrelated{end}": row["auroc" + end] for end in ("", "_low", "_high")}
        found[row["measure"]] = about | ends
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for entry in found.values():
        key = (entry["family"], "" if entry["family"] in FAMILIES else entry["labels"])
        groups.setdefault(key, []).append(entry)
    preset = {name for labels in LABELS for name in preset_names(labels)}
    chosen: list[dict[str, Any]] = []
    for family, _ in sorted(groups, key=_place):
        whole = family in FAMILIES
        members = groups.pop((family, _))
        members.sort(key=lambda entry: -tuning.get(entry["measure"], 0.0))
        if not whole:
            best = members[:BEST_OF_EACH]
            members = best + [m for m in members[BEST_OF_EACH:] if m["measure"] in preset]
        chosen += sorted(members, key=lambda entry: -entry.get("unrelated", 0.0))
    return chosen


def preset_names(labels: str) -> tuple[str, str]:
    """PSI under the calibrated preset, with D and, for encoders without texts, without."""
    with_d = (PRESET.d_measure, PRESET.d_level, PRESET.d_null)
    nothing = ("", "", "")
    with_text, without = (
        combined_name("PSI", PRESET.s_null, *d, labels) for d in (with_d, nothing)
    )
    return with_text, without


def _furthest_controls(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of each control the contrast furthest from 0.5: a control fails on either side of it."""
    own: dict[str, dict[str, Any]] = {}
    for row in rows:
        if row["family"] != "control" or row["half"] != "held-out":
            continue
        if "-unrelated / " in row["contrast"] and not row["contrast"].endswith(PROJECTION):
            known = own.setdefault(row["measure"], row)
            if abs(row["auroc"] - 0.5) > abs(known["auroc"] - 0.5):
                own[row["measure"]] = row
    return list(own.values())


def _shown(row: dict[str, Any]) -> bool:
    """Leave out what repeats the rest: other levels of D, nulls no preset would take."""
    if row["family"] not in ("component", "control"):
        return True
    nulls = {row["s_null"], row["d_null"]}
    return nulls <= CANDIDATES and row["d_level"] in ("", PRESET.d_level)


def _place(key: tuple[str, str]) -> tuple[int, str, str]:
    family, labels = key
    return (FAMILIES.index(family) if family in FAMILIES else len(FAMILIES), family, labels)
