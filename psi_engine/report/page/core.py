"""What the page needs at once: every channel's numbers in columns, the run's facts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from psi_engine.artifacts import Run
from psi_engine.report.page import words
from psi_engine.report.page.numbers import column
from psi_engine.report.tables import notes
from psi_engine.types import COMPONENTS, VERDICTS

_PLAIN = ("channel", "n_patches", "n_clusters", "status", "reason")
_SHOWN = ("psi", "psi_low", "psi_high", "psi_p", "clarity")
_EXACT = ("log_psi", "psi_p_adj", "clarity_p_adj")
# Verdicts are found again from the adjusted p-values at any level: every digit counts.
_PER_COMPONENT = ("", "_null_mean", "_null_std", "_z", "_p", "_p_adj", "_hat")
_ACTIVATION = ("activation_min", "activation_max", "sparsity")


def channel_columns(table: pa.Table) -> dict[str, list[Any]]:
    """The channels' table in columns, layers by number.

    Parameters
    ----------
    table : pyarrow.Table
        ``channels.parquet``.

    Returns
    -------
    dict
        Lists of one length. Columns that the run does not have, or that are wholly empty, are
        left out. Adjusted p-values keep every digit, other numbers five.
    """
    numbers = {name: i for i, name in enumerate(layers_of(table))}
    columns: dict[str, list[Any]] = {
        "layer": [numbers[name] for name in table["layer"].to_pylist()]
    }
    scores = [f"{x}{end}" for x in COMPONENTS for end in _PER_COMPONENT]
    for name in (*_PLAIN, *_SHOWN, *_EXACT, *scores, *_ACTIVATION, *words.PEERS):
        if name in table.column_names and table[name].null_count < len(table):
            columns[name] = column(table, name, None if name in _EXACT else 5)
    for name in ("psi_p_adj", "clarity_p_adj"):  # of a run in which no channel has one
        columns.setdefault(name, [None] * len(table))
    return columns


def layers_of(table: pa.Table) -> list[str]:
    """Names of the layers, in the table's order."""
    return list(dict.fromkeys(table["layer"].to_pylist()))


def add_clusters(columns: dict[str, Any], clusters: list[list[dict[str, Any]]]) -> list[str]:
    """Add each channel's groups by their best concepts and sizes; the names behind the numbers.

    Parameters
    ----------
    columns : dict
        As :func:`channel_columns` gives it; gets ``concepts``, ``sizes`` and ``medoids``, lists
        of one entry per group, the largest first.
    clusters : list of list of dict
        The groups of each channel in that order, with ``concepts``, ``size`` and ``medoid``, the
        slot of the medoid in the channel's sheet, −1 = none.
    """
    names: dict[str, int] = {}
    columns["concepts"] = [
        [names.setdefault(c["concepts"][0][0], len(names)) if c["concepts"] else -1 for c in own]
        for own in clusters
    ]
    columns["sizes"] = [[c["size"] for c in own] for own in clusters]
    columns["medoids"] = [[c["medoid"] for c in own] for own in clusters]
    return list(names)


def used_nulls(score: Mapping[str, Any], nulls: pa.Table | None) -> dict[str, list[words.Used]]:
    """The nulls each component was held against, the one of most channels first.

    Parameters
    ----------
    score : Mapping
        The settings of the scorer: what was asked for. Taken where nothing is recorded.
    nulls : pyarrow.Table, optional
        ``nulls.parquet``: what was used. It differs where a null could not be had, and some
        draw more than the replicates asked for.
    """
    found: dict[str, list[words.Used]] = {}
    if nulls is not None:
        groups = nulls.group_by(["component", "null", "replicates"]).aggregate([([], "count_all")])
        order = [("count_all", "descending"), ("null", "ascending"), ("replicates", "ascending")]
        for row in groups.sort_by(order).to_pylist():
            used = words.Used(row["null"], row["replicates"])
            found.setdefault(row["component"], []).append(used)
    asked = {x: [words.Used(score[f"{x}_null"], score["replicates"])] for x in COMPONENTS}
    return asked | found


def run_facts(run: Run, table: pa.Table, nulls: pa.Table | None) -> dict[str, Any]:
    """What was run, with what, and what a reader must know to read it.

    Parameters
    ----------
    run : Run
    table : pyarrow.Table
        ``channels.parquet``.
    nulls : pyarrow.Table, optional
        ``nulls.parquet``; None in older runs, of which it is said.

    Returns
    -------
    dict
        ``title``, ``facts`` (label and text), ``notes``, ``alpha``, ``adjust``,
        ``components``, ``peers``, ``verdicts``, ``layers``.
    """
    manifest = run.manifest
    config = manifest["config"]
    score = config.get("score", config)  # a scored file has no other settings
    present = {x: table[f"{x}_hat"].null_count < len(table) for x in COMPONENTS}
    identity = manifest["identity"]
    title = manifest.get("model", {}).get("name") or identity.get("file", run.path.name)
    absent = [x.upper() for x in COMPONENTS if not present[x]]
    told = notes(run)
    if absent:
        said = " and ".join(absent)
        told.insert(0, f"{said} not available in this run: PSI is made of what there is")
    if nulls is None:
        told.append("which nulls were used was not kept: named are those that were asked for")
    used = used_nulls(score, nulls)
    return {
        "title": title,
        "facts": _facts(
            manifest, config, score, {x: each for x, each in used.items() if present[x]}
        ),
        "notes": told,
        "alpha": score["alpha"],
        "adjust": score["adjust"],
        "components": words.components(present, score, used),
        "peers": [
            {"key": key, "name": name, "read": read}
            for key, (name, read) in words.PEERS.items()
            if key in table.column_names and table[key].null_count < len(table)
        ],
        "verdicts": [{"name": name, "means": words.VERDICTS[name]} for name in VERDICTS],
        "layers": layers_of(table),
    }


def _facts(
    manifest: Mapping[str, Any],
    config: Mapping[str, Any],
    score: Mapping[str, Any],
    used: Mapping[str, Sequence[words.Used]],
) -> list[tuple[str, str]]:
    stages, identity = manifest["stages"], manifest["identity"]
    facts: list[tuple[str, Any]] = []
    if "file" in identity:
        facts.append(("Embeddings", f"{identity['file']} ({identity['content']})"))
    else:
        facts += [
            ("Model", f"{manifest['model']['name']}, weights {config['weights']}"),
            ("Images", f"{config['data']}: {identity['data']}"),
            ("Encoder", manifest["encoder"]["name"] + _of(config.get("encoder_weights"))),
            ("Vocabulary", stages["score"].get("vocabulary")),
            ("Patches", _patches(config, stages["patches"].get("fields", {}))),
            ("Mining", f"{config['mine']['precision']}, sites {config['mine']['sites']}"),
        ]
    facts += [
        ("Nulls", _nulls(score, used)),
        ("Clusters", f"k = {score['k_min']}…{score['k_max']}, {score['solver']}, "
                     f"{score['restarts']} seedings"),
        ("Machine", ", ".join(filter(None, [
            manifest.get("device"), manifest.get("backend"),
            f"{manifest['ranks']} ranks" if manifest.get("ranks", 1) > 1 else None,
        ]))),
        ("Versions", ", ".join(f"{name} {x}" for name, x in manifest.get("versions", {}).items())),
        ("Seed", str(score["seed"])),
        ("Fingerprints", ", ".join(
            f"{name} {x[:16]}" for name, x in manifest.get("fingerprints", {}).items()
        )),
    ]  # fmt: skip
    return [(label, text) for label, text in facts if text]


def _of(weights: str | None) -> str:
    return "" if weights is None else f", weights {weights}"


def _nulls(score: Mapping[str, Any], used: Mapping[str, Sequence[words.Used]]) -> str:
    """Of the components that the run has."""
    parts = []
    for x, each in used.items():
        drawn = " or ".join(f"{null} ({draws:,} draws)" for null, draws in each)
        parts.append(f"{x.upper()} {drawn}{_instead(score[f'{x}_null'], each)}")
    measure = f"; D is {score['d_measure']}" if "d" in used else ""
    return f"{', '.join(parts)}{measure}"


def _instead(asked: str, used: Sequence[words.Used]) -> str:
    return "" if any(each.null == asked for each in used) else f" instead of {asked}"


def _patches(config: Mapping[str, Any], fields: Mapping[str, Any]) -> str:
    sides = ", ".join(
        f"{layer} {min(field['size'][0], 99999):.0f} px" for layer, field in fields.items()
    )
    return f"{config['mine']['top_k']} per channel; {config['patches']['patch']} field: {sides}"
