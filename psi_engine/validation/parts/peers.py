"""How far PSI ranks channels as other projects' measures do, and where they disagree most."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from scipy import stats

from psi_engine import baselines
from psi_engine.ops.random import hash_keys, string_key
from psi_engine.rank_correlation import LEAST, RankCorrelation, rank_correlation
from psi_engine.report.plots.peers import draw
from psi_engine.stored import StoredLayer
from psi_engine.validation.part import Context, Part, Result

OURS = ("log_psi", "s_z", "q_z", "d_z")
"""Columns of ``channels.parquet`` that are held against each peer."""

DISAGREEMENTS = 10
"""Channels listed per layer and peer on either side."""

Columns = dict[str, NDArray[np.float64]]

_SCHEMAS = {
    "correlations": pa.schema(
        [
            *((name, pa.string()) for name in ("layer", "measure", "peer")),
            ("direction", pa.int64()),
            ("n", pa.int64()),
            *((name, pa.float64()) for name in RankCorrelation._fields if name != "n"),
        ]
    ),
    "disagreements": pa.schema(
        [
            ("layer", pa.string()),
            ("peer", pa.string()),
            ("channel", pa.int64()),
            *((name, pa.float64()) for name in ("rank_psi", "rank_peer", "difference")),
        ]
    ),
}
# Of the tables that can be empty: of layers whose channels all fail there is nothing to hold
# against each other.


def compute(context: Context) -> Result:
    """Rank correlations of PSI and its components with every peer, layer by layer.

    Returns
    -------
    Result
        ``values``: layer, channel, the columns of :data:`OURS` and every peer as published; NaN
        of a peer is null. ``correlations``: per layer, measure and peer the ``direction`` of the
        peer (1 where high should mean polysemantic, −1 monosemantic, 0 neither; the peer's
        values are not turned), Spearman's ρ and Kendall's τ-b with bootstrap intervals and p.
        ``disagreements``: per layer and directed peer the channels whose rank by log PSI and by
        the peer (turned) differ most, on either side: ``rank_psi`` and ``rank_peer`` in [0, 1],
        1 the most polysemantic, and ``difference``.
    """
    stored, options = context.stored, context.options
    table = stored.run.channels.to_pylist()
    tables: dict[str, list[dict[str, Any]]] = {
        "values": [],
        "correlations": [],
        "disagreements": [],
    }
    notes = {"MIS and II are left out: the run embeds no least activating patches": None}
    for number, (name, layer) in enumerate(stored.layers.items()):
        own = {row["channel"]: row for row in table if row["layer"] == name}
        channels = layer.sites.channels.tolist()
        ours = {
            measure: np.array([_float(own[channel][measure]) for channel in channels])
            for measure in OURS
        }
        ours = {measure: x for measure, x in ours.items() if not np.isnan(x).all()}
        peers, told = _peers(layer)
        notes.update(dict.fromkeys(told))
        together = ours | peers
        tables["values"] += [
            {"layer": name, "channel": channel, **{x: _none(v[i]) for x, v in together.items()}}
            for i, channel in enumerate(channels)
        ]
        for measure, x in ours.items():
            for peer, y in peers.items():
                key = int(hash_keys(options.seed, string_key("peers"), string_key(name)))
                found = rank_correlation(x, y, key=key, resamples=options.bootstrap)
                about = {"layer": name, "measure": measure, "peer": peer}
                values = {field: _none(value) for field, value in found._asdict().items()}
                tables["correlations"].append(
                    about | {"direction": baselines.DIRECTIONS[peer]} | values
                )
        tables["disagreements"] += _disagreements(name, channels, ours.get("log_psi"), peers)
        context.tell("layers", number + 1, len(stored.layers))
    result = {name: pa.Table.from_pylist(rows, _SCHEMAS.get(name)) for name, rows in tables.items()}
    return Result(result, tuple(notes), _headline(tables["correlations"]))


_TURNED = ("one_minus_clarity",)
# Peers that say no more than another column does.


def _peers(layer: StoredLayer) -> tuple[Columns, list[str]]:
    """Every peer's measure of a layer's channels; NaN where a patch is missing.

    Not MIS and II: they look at the least activating patches, which a run does not embed.
    """
    x, whole = layer.embeddings, layer.mask.all(1)
    rows = torch.nonzero(whole)[:, 0]
    notes = []
    if len(rows) < len(whole):
        notes.append(
            f"{layer.name}: {len(whole) - len(rows)} channels with missing patches have no peers' "
            "measures"
        )
    if not len(rows):
        return {}, notes
    weights = layer.sites.unit_range[:, : x.shape[1]]
    found = baselines.measure_peers(x[rows], weights=weights[rows], centre=layer.pool.mean(0))
    columns = {}
    for name, values in found.items():
        if name not in _TURNED:
            columns[name] = np.full(len(whole), np.nan)
            columns[name][rows.numpy()] = values.numpy()
    return columns, notes


def _disagreements(
    layer: str, channels: list[int], psi: NDArray[np.float64] | None, peers: Columns
) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for peer, values in peers.items():
        direction = baselines.DIRECTIONS[peer]
        if psi is None or not direction:
            continue
        there = np.flatnonzero(~np.isnan(psi) & ~np.isnan(values))
        if len(there) < LEAST:
            continue
        ours, theirs = (
            (stats.rankdata(x[there]) - 1) / (len(there) - 1) for x in (psi, direction * values)
        )
        difference = ours - theirs
        order = np.argsort(difference, kind="stable")
        listed = min(DISAGREEMENTS, len(order) // 2)
        rows += [
            {
                "layer": layer,
                "peer": peer,
                "channel": channels[there[place]],
                "rank_psi": float(ours[place]),
                "rank_peer": float(theirs[place]),
                "difference": float(difference[place]),
            }
            for place in [*order[::-1][:listed], *order[:listed]]
        ]
    return rows


def _headline(rows: list[dict[str, Any]]) -> tuple[str, ...]:
    return tuple(
        f"{row['layer']}: Spearman of PSI and {row['peer']} {row['spearman']:.2f} "
        f"[{row['spearman_low']:.2f}, {row['spearman_high']:.2f}]"
        for row in rows
        if row["measure"] == "log_psi" and row["direction"] and row["spearman"] is not None
    )


def _float(value: float | None) -> float:
    return float("nan") if value is None else value


def _none(value: float) -> float | None:
    return None if value != value else value


PART = Part("peers", compute, draw, options=("bootstrap", "seed"))
