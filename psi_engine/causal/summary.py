"""Does the aligned patch raise the activation more than each control? Tests of the swaps."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from psi_engine.causal.config import CONDITIONS, CONTROLS, HostKind
from psi_engine.ops.random import hash_keys, string_key
from psi_engine.paired_tests import Floats, holm, mean_intervals, paired_test

LEVELS = ("channel", "layer", "all")
"""What a row is about: pairs are the hosts of a channel, or the means of channels."""

NOT_COMPARED = (
    "random hosts: aligned and non-aligned are not compared, such a host has no cluster and the "
    "clusters take turns as the aligned one"
)

_NUMBERS = (
    "mean_aligned", "aligned_low", "aligned_high", "mean_control", "control_low", "control_high",
    "mean_difference", "difference_low", "difference_high", "mean_aligned_raw",
    "mean_control_raw", "t", "t_p", "t_p_holm", "wilcoxon", "wilcoxon_p", "wilcoxon_p_holm",
    "dz", "rank_biserial",
)  # fmt: skip

SUMMARY_SCHEMA = pa.schema(
    [
        ("level", pa.string()),
        ("layer", pa.string()),
        ("channel", pa.int64()),
        ("hosts", pa.string()),
        ("blend", pa.string()),
        ("control", pa.string()),
        ("n", pa.int64()),
        *((name, pa.float64()) for name in _NUMBERS),
    ]
)


def controls_of(hosts: HostKind) -> tuple[str, ...]:
    """Controls that aligned is held against.

    In random hosts not non-aligned: which cluster is the aligned one is arbitrary there, so the
    two are exchangeable by construction and their difference says nothing.
    """
    return tuple(name for name in CONTROLS if hosts == "top" or name != "non-aligned")


def compare_conditions(swaps: pa.Table, resamples: int, seed: int) -> pa.Table:
    """Compare the aligned condition with each control.

    Parameters
    ----------
    swaps : pyarrow.Table
        ``causal.parquet``: every host of a channel has one row per blend and condition.
    resamples : int
        Of the intervals.
    seed : int

    Returns
    -------
    pyarrow.Table
        One row per level (channel, layer, all) × hosts × blend × control of the hosts
        (:func:`controls_of`). ΔA in units of the
        channel's range; ``*_raw`` in the network's own, for channels only, since channels are on
        different scales. Numbers that are not defined are null.

    Notes
    -----
    A channel's pairs are its hosts; a host with a ΔA that is not finite in any condition is left
    out of all. Pooled pairs are the means of channels, each counting once. Tests are two-sided.
    Holm's correction is over all tests of the same level, hosts and blend: the controls of all
    channels, of all layers, or of the pool.
    """
    rows: list[dict[str, Any]] = []
    means: dict[tuple[str, str], dict[str, list[Floats]]] = defaultdict(lambda: defaultdict(list))
    for (layer, channel, hosts, blend), deltas in _by_channel(swaps).items():
        whole = deltas[:, np.isfinite(deltas).all((0, 2)), :]
        key = _key(seed, "channel", layer, channel, hosts, blend)
        place = {"level": "channel", "layer": layer, "channel": channel}
        rows += _compare(whole, place | {"hosts": hosts, "blend": blend}, key, resamples)
        if whole.shape[1]:
            means[hosts, blend][layer].append(whole.mean(1))
    for (hosts, blend), by_layer in means.items():
        every = [one for parts in by_layer.values() for one in parts]
        for name, parts in (*by_layer.items(), (None, every)):
            level = "all" if name is None else "layer"
            key = _key(seed, level, name or "", -1, hosts, blend)
            place = {"level": level, "layer": name, "channel": None}
            rows += _compare(
                np.stack(parts, 1), place | {"hosts": hosts, "blend": blend}, key, resamples
            )
    rows.sort(key=lambda row: LEVELS.index(row["level"]))  # stable: layers and channels stay put
    _correct(rows)
    return pa.Table.from_pylist([_blank(row) for row in rows], SUMMARY_SCHEMA)


def _by_channel(swaps: pa.Table) -> dict[tuple[str, int, str, str], Floats]:
    """ΔA in units and raw, (conditions, hosts, 2), by (layer, channel, hosts, blend)."""
    names = ("layer", "channel", "hosts", "blend")
    values = np.stack(
        [
            swaps[name].to_numpy(zero_copy_only=False).astype(np.float64)
            for name in ("delta_units", "delta")
        ],
        1,
    )
    conditions = np.array(swaps["condition"].to_pylist())
    places: dict[Any, list[int]] = defaultdict(list)
    for place, key in enumerate(zip(*(swaps[name].to_pylist() for name in names), strict=True)):
        places[key].append(place)
    return {
        key: np.stack([values[rows][conditions[rows] == condition] for condition in CONDITIONS])
        for key, rows in places.items()
    }


def _compare(
    deltas: Floats, place: dict[str, Any], key: int, resamples: int
) -> list[dict[str, Any]]:
    """One row per control, from ΔA (conditions, pairs, 2)."""
    units, pairs = deltas[..., 0], deltas.shape[1]
    differences = units[0] - units[1:]
    low, high = mean_intervals(key, np.concatenate([units, differences]), resamples)
    mean = deltas.mean(1) if pairs else np.full((len(CONDITIONS), 2), np.nan)
    raw = mean[:, 1] if place["level"] == "channel" else np.full(len(CONDITIONS), np.nan)
    rows = []
    for control in controls_of(place["hosts"]):
        number = CONDITIONS.index(control)
        test = paired_test(units[0], units[number])
        other = len(CONDITIONS) + number - 1
        rows.append(
            place
            | {
                "control": control,
                "n": test.n,
                "mean_aligned": mean[0, 0],
                "aligned_low": low[0],
                "aligned_high": high[0],
                "mean_control": mean[number, 0],
                "control_low": low[number],
                "control_high": high[number],
                "mean_difference": test.difference,
                "difference_low": low[other],
                "difference_high": high[other],
                "mean_aligned_raw": raw[0],
                "mean_control_raw": raw[number],
                "t": test.t,
                "t_p": test.t_p,
                "wilcoxon": test.wilcoxon,
                "wilcoxon_p": test.wilcoxon_p,
                "dz": test.dz,
                "rank_biserial": test.rank_biserial,
            }
        )
    return rows


def _correct(rows: Sequence[dict[str, Any]]) -> None:
    families: dict[Any, list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        families[row["level"], row["hosts"], row["blend"]].append(row)
    for family in families.values():
        for name in ("t_p", "wilcoxon_p"):
            adjusted = holm([row[name] for row in family])
            for row, p in zip(family, adjusted, strict=True):
                row[f"{name}_holm"] = p


def _blank(row: dict[str, Any]) -> dict[str, Any]:
    """The row as Arrow takes it: null for NaN, plain floats."""
    numbers = {name: float(row[name]) for name in _NUMBERS}
    return row | {name: None if np.isnan(x) else x for name, x in numbers.items()}


def _key(seed: int, level: str, layer: str, channel: int, hosts: str, blend: str) -> int:
    words = [string_key(word) for word in ("swap bootstrap", level, layer, hosts, blend)]
    return int(hash_keys(seed, *words, channel))
