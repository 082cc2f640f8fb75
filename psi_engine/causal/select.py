"""Which channels are swapped, and why the others are not."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from psi_engine.artifacts import Run
from psi_engine.causal.plan import LayerPlan, unusable_reason
from psi_engine.errors import InputError
from psi_engine.models import parse_channels
from psi_engine.types import LayerSites

TOP = 10
"""Channels of highest PSI per layer that are swapped unless others are asked for (the paper's)."""

_NUMBERS = re.compile(r"\d+(-\d+)?")


def select_channels(
    run: Run, layers: Mapping[str, LayerSites], specs: Sequence[str], top: int | None
) -> dict[str, list[int]]:
    """Rows of each layer's channels that are asked for.

    Parameters
    ----------
    run : Run
        For its log PSI.
    layers : mapping of layer name to LayerSites
    specs : sequence of str
        ``layer4`` (all of it), ``layer4:3,7``, ``layer4:0-63``; empty = every channel.
    top : int, optional
        Of those, so many of highest log PSI per layer (ties: the lower channel first; channels
        without a PSI never). None = all that ``specs`` names, 10 a layer where it is empty.

    Returns
    -------
    dict
        Layer → rows, ascending; layers without any are left out.

    Raises
    ------
    InputError
        A layer or channel that the run does not hold, or none left.
    """
    named = _named(layers, specs)
    if top is None and specs:
        return named
    table = run.channels
    log_psi = table["log_psi"].to_numpy(zero_copy_only=False).astype(np.float64)
    places = zip(table["layer"].to_pylist(), table["channel"].to_pylist(), strict=True)
    psi = dict(zip(places, log_psi, strict=True))
    chosen: dict[str, list[int]] = {}
    for layer, rows in named.items():
        channels = layers[layer].channels.tolist()
        scored = [row for row in rows if not np.isnan(psi[layer, channels[row]])]
        scored.sort(key=lambda row: (-psi[layer, channels[row]], channels[row]))
        if scored:
            chosen[layer] = sorted(scored[: TOP if top is None else top])
    if not chosen:
        raise InputError(
            "no channel has a PSI to choose the highest by",
            got=", ".join(named),
            fix="name channels with --channels",
        )
    return chosen


def _named(layers: Mapping[str, LayerSites], specs: Sequence[str]) -> dict[str, list[int]]:
    if not specs:
        return {name: list(range(len(sites.channels))) for name, sites in layers.items()}
    whole: set[str] = set()
    lists: list[str] = []
    for spec in specs:
        # "a,b:3,7" is layer a, then channels 3 and 7 of b: a number goes on with the layer before.
        for part in (part.strip() for part in spec.split(",")):
            goes_on = lists and _NUMBERS.fullmatch(part)
            if goes_on:
                lists[-1] += f",{part}"
            elif part in layers:
                whole.add(part)
            elif ":" in part:
                lists.append(part)
            else:
                raise InputError(
                    "no such layer in the run", got=repr(part), expected=", ".join(layers)
                )
    shapes = {name: sites.shape for name, sites in layers.items()}
    asked = parse_channels(lists, shapes) if lists else {}
    listed = {spec.rpartition(":")[0] for spec in lists}
    out: dict[str, list[int]] = {}
    for name, sites in layers.items():
        held = {channel: row for row, channel in enumerate(sites.channels.tolist())}
        if name in whole:
            out[name] = list(range(len(held)))
        elif name in listed:
            absent = [channel for channel in asked[name].tolist() if channel not in held]
            if absent:
                raise InputError(
                    f"channels of {name} that the run does not hold",
                    got=absent,
                    expected=f"of {len(held)} channels from {min(held)} to {max(held)}",
                )
            out[name] = sorted(held[channel] for channel in asked[name].tolist())
    return out


def sort_out(
    run: Run, plans: Mapping[str, LayerPlan], chosen: Mapping[str, Sequence[int]]
) -> tuple[dict[str, list[int]], list[dict[str, Any]]]:
    """Part the channels that can be swapped from those that cannot.

    Parameters
    ----------
    run : Run
        For the channels that could not be scored and why.
    plans : mapping of layer name to LayerPlan
    chosen : mapping of layer name to rows

    Returns
    -------
    tuple
        Rows by layer, and one ``{"layer", "channel", "reason"}`` for each of the others.

    Raises
    ------
    InputError
        None can be swapped; with the first reasons.
    """
    table = run.channels.select(["layer", "channel", "status", "reason"]).to_pylist()
    failed = {
        (row["layer"], row["channel"]): row["reason"] for row in table if row["status"] == "failed"
    }
    usable: dict[str, list[int]] = {}
    skipped: list[dict[str, Any]] = []
    for layer, rows in chosen.items():
        for row in rows:
            channel = int(plans[layer].sites.channels[row])
            reason = failed.get((layer, channel)) or unusable_reason(plans[layer], row)
            if reason is None:
                usable.setdefault(layer, []).append(row)
            else:
                skipped.append({"layer": layer, "channel": channel, "reason": reason})
    if not usable:
        raise InputError(
            "no channel can be swapped",
            got="; ".join(f"{x['layer']}:{x['channel']} {x['reason']}" for x in skipped[:5]),
            expected="channels with two clusters, each with patches of two images",
            fix="name others with --channels",
        )
    return usable, skipped
