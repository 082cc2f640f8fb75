"""Does the ranking of channels survive another K, seed, M, range of k, other images (Fig. 4).

Whatever the stored embeddings suffice for is always done; what must be mined or cut anew only
with ``variants``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa

from psi_engine.config import ScoreConfig
from psi_engine.inputs import reopen
from psi_engine.ops.random import hash_keys, string_key
from psi_engine.report.plots.stability import draw
from psi_engine.stored import StoredRun
from psi_engine.types import Scores
from psi_engine.validation.agreement import (
    Columns,
    agreement,
    columns_of,
    explain,
    nested_correlation,
    reliability,
)
from psi_engine.validation.conditions import (
    AXES,
    Condition,
    conditions,
    pairs,
    score_under,
    smallest_pool,
)
from psi_engine.validation.part import Context, Part, Result
from psi_engine.validation.variants import make_variant, variants

TARGETS = {"seed": 0.9, "K": 0.8}
"""Least Spearman's ρ of log PSI: between two seeds, and between four fifths of the patches and
all of them (K = 40 and K = 50, where the paper has 0.42)."""

ALL = "all layers"
_SAME_PATCHES = ("K", "seed", "M", "k", "solver", "patch")
# Axes on which column i of the assignments is the same site.

Key = tuple[str, str, str]


def compute(context: Context) -> Result:
    """Score every layer under every condition and compare the rankings.

    Returns
    -------
    Result
        ``correlations``: per axis, layer (and all layers together), measure and pair of conditions
        Spearman's ρ with its interval over channels. ``reasons``: per pair and layer what moved
        log PSI (:func:`psi_engine.validation.agreement.explain`), ``target`` and ``reached``
        where there is one, ``reliability`` of the K patches from the halves of the images, and
        ``expected``, the ρ that an average over patches of that reliability would have.
        ``scores``: what was compared, per channel and condition. ``conditions``: what each is.
    """
    stored, options = context.stored, context.options
    widths = {name: layer.rows.shape[1] for name, layer in stored.layers.items()}
    top_k = max(widths.values())
    own = own_settings(context)
    runs: dict[str | None, StoredRun] = {None: stored}
    notes = _too_few(widths, stored.config.mine.top_k)
    listed = conditions(own, top_k, options.seed)
    if small := [x.name for x in stored.layers.values() if smallest_pool(x, listed) < top_k // 2]:
        listed = [condition for condition in listed if condition.half is None]
        notes.append(f"halves of the images are left out: half a pool is too small ({small[0]})")
    if options.variants:
        listed += _variants(context, own, runs, notes)
    scores = _score_all(context, listed, runs)
    compared = pairs(listed)
    correlations, reasons = [], []
    columns = {at: columns_of(found) for at, found in scores.items()}
    for one, other in compared:
        names = {"axis": one.axis, "one": one.name, "other": other.name}
        for layer in _layers(stored):
            # one key for all pairs of a layer: their intervals are of the same resampled channels
            key = int(hash_keys(options.seed, string_key(f"validation/stability/{layer}")))
            first, second = (_of(columns, stored, layer, x) for x in (one, other))
            rows = agreement(first, second, key=key, resamples=options.bootstrap)
            correlations += [{"layer": layer, **names, **row} for row in rows]
    halves = _halves(correlations)
    for one, other in compared:
        for layer in stored.layers:
            pair = (scores[_at(layer, one)], scores[_at(layer, other)])
            width = widths[layer]
            reasons.append(_reason(layer, one, other, pair, correlations, halves, width))
    tables = {
        "correlations": pa.Table.from_pylist(correlations),
        "reasons": pa.Table.from_pylist(reasons),
        "scores": _score_table(stored, listed, scores),
        "conditions": pa.Table.from_pylist([_described(condition) for condition in listed]),
    }
    if any(c.half for c in listed):
        notes.append(
            f"halves of the images: a channel's stored patches from a half are that half's own "
            f"first ones, at most {top_k // 2}; nothing was mined again"
        )
    return Result(tables, tuple(notes), _headline(reasons))


def own_settings(context: Context) -> ScoreConfig:
    """The run's settings of the scorer, with the draws asked for and without intervals of PSI."""
    config = context.stored.config.score
    draws = context.options.replicates or config.replicates
    return replace(config, replicates=draws, subsamples=0)


def _variants(
    context: Context, own: ScoreConfig, runs: dict[str | None, StoredRun], notes: list[str]
) -> list[Condition]:
    """Make every variant there can be, into ``runs``, and its conditions beside the run's own."""
    stored = context.stored
    found, told = variants(stored.config)
    notes += told
    inputs = reopen(stored.run)
    listed = [
        Condition("patch", "× 1", own), Condition("sites", stored.config.mine.sites, own)
    ]  # fmt: skip
    for variant in found:
        if variant.axis == "K" and widest(stored) < stored.config.mine.top_k:
            notes.append(f"K = {variant.condition} is left out: there are no more patches")
            continue
        folder = context.folder / "variants" / variant.name
        runs[variant.name] = make_variant(
            stored, inputs, variant, folder,
            device=context.options.device, progress=context.progress,
        )  # fmt: skip
        name = variant.condition
        if variant.axis == "K" and (most := widest(runs[variant.name])) < int(name):
            notes.append(f"K = {name} was mined, but no channel has more than {most} patches")
            if most <= widest(stored):
                continue
            name = str(most)
        listed.append(Condition(variant.axis, name, own, variant=variant.name))
    return sorted(listed, key=_order)


def _order(condition: Condition) -> tuple[str, int, str]:
    """By axis and name; K by its number."""
    size = int(condition.name) if condition.axis == "K" else 0
    return condition.axis, size, condition.name


def widest(stored: StoredRun) -> int:
    """Patches of the channels that have most."""
    return max(layer.rows.shape[1] for layer in stored.layers.values())


def _too_few(widths: Mapping[str, int], top_k: int) -> list[str]:
    """What layers without as many patches as were asked for mean for K, in words."""
    most = max(widths.values())
    notes = []
    if most < top_k:
        notes.append(
            f"no channel has more than {most} of the {top_k} patches asked for: K and the halves "
            f"are counted from {most}"
        )
    notes += [
        f"no channel of {layer} has more than {width} patches: every K above is the same there"
        for layer, width in widths.items()
        if width < most
    ]
    return notes


def _score_all(
    context: Context, listed: list[Condition], runs: Mapping[str | None, StoredRun]
) -> dict[Key, Scores]:
    """Scores by layer, axis and name; conditions that come to the same are scored once."""
    found: dict[Key, Scores] = {}
    for number, layer in enumerate(context.stored.layers):
        done: dict[tuple[Any, ...], Scores] = {}
        for place, condition in enumerate(listed):
            if condition.work not in done:
                done[condition.work] = score_under(runs[condition.variant], layer, condition)
            found[_at(layer, condition)] = done[condition.work]
            step = number * len(listed) + place + 1
            context.tell("conditions", step, len(context.stored.layers) * len(listed))
    return found


def _at(layer: str, condition: Condition) -> Key:
    return layer, condition.axis, condition.name


def _layers(stored: StoredRun) -> list[str]:
    return [*stored.layers, ALL] if len(stored.layers) > 1 else list(stored.layers)


def _of(
    columns: Mapping[Key, Columns], stored: StoredRun, layer: str, condition: Condition
) -> Columns:
    if layer != ALL:
        return columns[_at(layer, condition)]
    parts = [columns[_at(name, condition)] for name in stored.layers]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _halves(correlations: list[dict[str, Any]]) -> dict[str, float]:
    """Mean ρ of log PSI between two halves of the images, by layer."""
    found: dict[str, list[float]] = {}
    for row in correlations:
        if row["axis"] == "images" and row["measure"] == "log_psi" and row["spearman"] is not None:
            found.setdefault(row["layer"], []).append(row["spearman"])
    return {layer: float(np.mean(rhos)) for layer, rhos in found.items()}


def _reason(
    layer: str,
    one: Condition,
    other: Condition,
    pair: tuple[Scores, Scores],
    correlations: list[dict[str, Any]],
    halves: Mapping[str, float],
    width: int,
) -> dict[str, Any]:
    (row,) = [
        row for row in correlations
        if (row["layer"], row["axis"], row["one"], row["other"], row["measure"])
        == (layer, one.axis, one.name, other.name, "log_psi")
    ]  # fmt: skip
    target = _target(one, other, width)
    rho, half = row["spearman"], halves.get(layer)
    expected = whole = None
    if half is not None:
        halved = width // 2
        whole = reliability(half, width / halved)
        if one.axis == "K" and (one.variant or other.variant or int(other.name) <= width):
            expected = nested_correlation(half, halved, int(one.name), int(other.name))
    return {
        "layer": layer, "axis": one.axis, "one": one.name, "other": other.name,
        "spearman": rho, "spearman_low": row["spearman_low"], "spearman_high": row["spearman_high"],
        "target": target, "reached": None if target is None or rho is None else rho >= target,
        **explain(*pair, same_patches=one.axis in _SAME_PATCHES),
        "halves": half, "reliability": whole, "expected": expected,
    }  # fmt: skip


def _target(one: Condition, other: Condition, width: int) -> float | None:
    """The target of a pair: any two seeds, and four fifths of the patches against all."""
    if one.axis == "K" and (one.name, other.name) != (str(round(0.8 * width)), str(width)):
        return None
    return TARGETS.get(one.axis)


def _score_table(
    stored: StoredRun, listed: list[Condition], scores: Mapping[Key, Scores]
) -> pa.Table:
    parts = []
    for layer, held in stored.layers.items():
        channels = pa.array(held.sites.channels.numpy())
        for condition in listed:
            found = scores[_at(layer, condition)]
            table = found.to_arrow()
            kept = ["n_patches", "n_clusters", "verdict", "psi", "log_psi"]
            kept += [name for x in ("s", "q", "d") for name in (x, f"{x}_z", f"{x}_p")]
            about = {
                "layer": pa.array([layer] * len(channels)),
                "channel": channels,
                "axis": pa.array([condition.axis] * len(channels)),
                "condition": pa.array([condition.name] * len(channels)),
            }
            parts.append(pa.table({**about, **{name: table[name] for name in kept}}))
    return pa.concat_tables(parts)


def _described(condition: Condition) -> dict[str, Any]:
    config = condition.config
    return {
        "axis": condition.axis, "condition": condition.name, "meaning": AXES[condition.axis],
        "patches": condition.patches, "variant": condition.variant, "seed": config.seed,
        "replicates": config.replicates, "k_min": config.k_min, "k_max": config.k_max,
        "solver": config.solver, "restarts": config.restarts,
    }  # fmt: skip


def _headline(reasons: list[dict[str, Any]]) -> tuple[str, ...]:
    """One line per layer and target: the lowest ρ of its pairs, and where it is missed, why."""
    lines = []
    for layer in dict.fromkeys(row["layer"] for row in reasons):
        for axis in TARGETS:
            rows = [
                row for row in reasons
                if (row["layer"], row["axis"]) == (layer, axis) and row["reached"] is not None
            ]  # fmt: skip
            if not rows:
                continue
            row = min(rows, key=lambda row: row["spearman"])
            text = (
                f"{layer}, {axis} {row['one']} against {row['other']}: ρ of log PSI "
                f"{row['spearman']:.2f} [{_two(row['spearman_low'])}, {_two(row['spearman_high'])}]"
            )
            word = "reached" if row["reached"] else "missed"
            why = "" if row["reached"] else "; " + why_missed(row)
            lines.append(f"{text}, {word} {row['target']}{why}")
    return tuple(lines)


def why_missed(row: Mapping[str, Any]) -> str:
    """Say in words what a row of ``reasons`` says of a ranking that moved."""
    only = {x: row[f"only_{x}"] for x in ("s", "q", "d") if row[f"only_{x}"] is not None}
    parts = []
    if only:
        mover = min(only, key=lambda x: only[x])
        parts.append(f"{mover.upper()} alone takes it to {only[mover]:.2f}")
    if row["same_k"] is not None:
        parts.append(
            f"k̂ stays in {row['same_k']:.0%} of channels, with ρ {_two(row['spearman_same_k'])}"
        )
    if row["halves"] is not None:
        parts.append(f"two halves of the images agree to {row['halves']:.2f}")
    if row["expected"] is not None:
        parts.append(
            f"an average over patches of that reliability would have {row['expected']:.2f}"
        )
    return ", ".join(parts) or "nothing to tell it from"


def _two(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


PART = Part(
    "stability", compute, draw, options=("bootstrap", "replicates", "seed", "variants"), version=2
)
