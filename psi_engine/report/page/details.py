"""What the page needs of a channel: its groups, patches, nulls and swaps, in shards."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from psi_engine.report.page.numbers import column, rounded
from psi_engine.report.page.pictures import Drawn
from psi_engine.report.page.sites import Groups, Sites, channel_rows

SHARD = 32
"""Channels whose details come in one file."""

LABELS = 5
"""Classes named per group; the rest are counted together."""


def cluster_lists(channels: int, groups: Groups, sites: Sites, drawn: Drawn | None) -> list[Any]:
    """Each channel's groups, the largest first.

    Returns
    -------
    list of list of dict
        ``cluster``, ``size``, ``silhouette``, ``concepts`` ([name, similarity] pairs) and
        ``medoid``, its slot in the channel's sheet, −1 = none.
    """
    ranks = sites.table["rank"].to_numpy()
    slots = np.full(len(ranks), -1) if drawn is None else drawn.slots
    found: list[list[dict[str, Any]]] = [[] for _ in range(channels)]
    for row, entry in zip(groups.row.tolist(), groups.table.to_pylist(), strict=True):
        start, end = sites.bounds[row : row + 2].tolist()
        medoid = np.flatnonzero(ranks[start:end] == entry["medoid_rank"])
        found[row].append(
            {
                "cluster": entry["cluster"],
                "size": entry["size"],
                "silhouette": rounded([entry["silhouette"]])[0],
                "concepts": [
                    [c["concept"], rounded([c["similarity"]], 4)[0]]
                    for c in entry["concepts"] or ()
                ],
                "medoid": int(slots[start + medoid[0]]) if len(medoid) else -1,
            }
        )
    return found


def shards(
    clusters: Sequence[list[dict[str, Any]]],
    sites: Sites,
    drawn: Drawn | None,
    class_names: Sequence[str] | None,
    nulls: Mapping[int, Any],
    swaps: Mapping[int, Any],
) -> list[dict[str, Any]]:
    """The channels' details, :data:`SHARD` at a time.

    Parameters
    ----------
    clusters : sequence of list of dict
        As :func:`cluster_lists` gives them.
    drawn : Drawn, optional
        None = no pictures.
    class_names : sequence of str, optional
        Names of the labels; None = numbers.
    nulls, swaps : Mapping
        By row of the channel, as :func:`null_quantiles` and :func:`swap_tests` give them.

    Returns
    -------
    list of dict
        ``rows`` in the channels' order and ``strings``, which patches name by number. A row
        holds ``clusters`` (with ``labels``, the commonest [name, count] pairs, and ``others``),
        ``patches`` (columns), ``nulls`` and ``swaps`` (null where there are none).
    """
    found = []
    for first in range(0, len(clusters), SHARD):
        strings: dict[str, int] = {}

        def number(text: str | None, known: dict[str, int] = strings) -> int:
            return -1 if text is None else known.setdefault(text, len(known))

        rows = []
        for row in range(first, min(first + SHARD, len(clusters))):
            start, end = sites.bounds[row : row + 2].tolist()
            own = sites.table.slice(start, end - start)
            group = sites.patches.cluster[start:end]
            labels = [_name(label, class_names) for label in own["label"].to_pylist()]
            rows.append(
                {
                    "clusters": [
                        entry | _histogram([labels[i] for i in np.flatnonzero(group == order)])
                        for order, entry in enumerate(clusters[row])
                    ],
                    "patches": _patches(own, group.tolist(), labels, number)
                    | _places(sites, slice(start, end), drawn),
                    "nulls": nulls.get(row),
                    "swaps": swaps.get(row),
                }
            )
        found.append({"rows": rows, "strings": list(strings)})
    return found


def null_quantiles(channels: pa.Table, table: pa.Table | None) -> dict[int, dict[str, Any]]:
    """Quantiles of each channel's nulls by component, from ``nulls.parquet``.

    Returns
    -------
    dict
        Row of the channel → component → list of floats; empty where the run has no such table.
    """
    found: dict[int, dict[str, Any]] = {}
    if table is None:
        return found
    rows = channel_rows(channels, table).tolist()
    parts = zip(rows, table["component"].to_pylist(), table["quantiles"].to_pylist(), strict=True)
    for row, component, quantiles in parts:
        if row >= 0 and quantiles:
            found.setdefault(row, {})[component] = rounded(quantiles, 4)
    return found


_SWAP = ("n", "mean_aligned", "aligned_low", "aligned_high", "mean_control", "control_low",
         "control_high", "mean_difference", "t_p_holm", "dz")  # fmt: skip


def swap_tests(channels: pa.Table, table: pa.Table | None) -> dict[int, list[dict[str, Any]]]:
    """Each swapped channel's tests of aligned against its controls, from its summary."""
    found: dict[int, list[dict[str, Any]]] = {}
    if table is None:
        return found
    own = table.filter(pc.equal(table["level"], "channel"))
    rows = channel_rows(channels, own).tolist()
    for row, entry in zip(rows, swap_rows(own), strict=True):
        if row >= 0:
            found.setdefault(row, []).append(entry)
    return found


def swap_rows(table: pa.Table) -> list[dict[str, Any]]:
    """Rows of ``causal_summary.parquet`` as the page draws them."""
    columns = {name: column(table, name) for name in ("hosts", "blend", "control", *_SWAP)}
    return [
        dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)
    ]


def _patches(
    own: pa.Table,
    group: list[int],
    labels: list[str | None],
    number: Callable[[str | None], int],
) -> dict[str, Any]:
    columns: dict[str, Any] = {
        "group": group,
        "rank": own["rank"].to_pylist(),
        "label": [number(label) for label in labels],
        "key": [number(key) for key in own["key"].to_pylist()],
    }
    for name in ("activation", "silhouette"):
        if name in own.column_names and own[name].null_count < len(own):
            columns[name] = column(own, name, 4)
    return columns


def _places(sites: Sites, part: slice, drawn: Drawn | None) -> dict[str, Any]:
    """Where the patches are in their images, and which pictures of them there are."""
    if not len(sites.patches.image):
        return {}
    images = sites.patches.image[part].tolist()
    places = {"image": images, "box": sites.patches.box[part].tolist()}
    if drawn is not None:
        places["slot"] = drawn.slots[part].tolist()
        places["host"] = [int(image in drawn.hosts) for image in images]
    return places


def _name(label: int | None, names: Sequence[str] | None) -> str | None:
    if label is None:
        return None
    return f"class {label}" if names is None or label >= len(names) else names[label]


def _histogram(labels: list[str | None]) -> dict[str, Any]:
    """The commonest labels with their counts, and how many patches have others."""
    counts = Counter(label for label in labels if label is not None)
    most = sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))[:LABELS]
    return {
        "labels": [list(pair) for pair in most],
        "others": counts.total() - sum(n for _, n in most),
    }
