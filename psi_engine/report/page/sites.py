"""The top sites of a run in the order the page shows them: by channel, group, place."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from psi_engine.report.page.pictures import Patches


class Groups(NamedTuple):
    """Clusters of all channels, channel after channel, the largest first.

    row : int64 (n,), the channel's row. cluster : int64 (n,), as ``clusters.parquet`` numbers it.
    order : int64 (n,), its place among the channel's. table : their rows of the table.
    """

    row: NDArray[np.int64]
    cluster: NDArray[np.int64]
    order: NDArray[np.int64]
    table: pa.Table


class Sites(NamedTuple):
    """Top sites, in the order they are shown; sites of no group come last.

    patches : where they are. ``image`` and ``box`` are empty in a run without images.
    table : their rows of ``sites.parquet``.
    bounds : int64 (channels + 1,), where each channel's begin.
    """

    patches: Patches
    table: pa.Table
    bounds: NDArray[np.int64]


def channel_rows(channels: pa.Table, table: pa.Table) -> NDArray[np.int64]:
    """For every row of a table with ``layer`` and ``channel``: the row of ``channels.parquet``.

    Returns
    -------
    ndarray, int64 (rows of the table,)
        −1 where the channel is not there.
    """
    layers = list(dict.fromkeys(channels["layer"].to_pylist()))
    order, own = _keys(channels, layers), _keys(table, layers)
    sorting = np.argsort(order, kind="stable")
    place = np.searchsorted(order, own, sorter=sorting).clip(max=len(order) - 1)
    rows = sorting[place]
    return np.where(order[rows] == own, rows, -1)


def group_clusters(channels: pa.Table, clusters: pa.Table) -> Groups:
    """Order the clusters of each channel by size, the largest first, then by number."""
    rows = channel_rows(channels, clusters)
    numbers = clusters["cluster"].to_numpy()
    sorting = np.lexsort((numbers, -clusters["size"].to_numpy(), rows))
    sorting = sorting[rows[sorting] >= 0]
    rows, numbers = rows[sorting], numbers[sorting]
    return Groups(rows, numbers, _count_up(rows), clusters.take(sorting))


def order_sites(channels: pa.Table, groups: Groups, sites: pa.Table) -> Sites:
    """Sort the top sites for showing.

    Parameters
    ----------
    channels, sites : pyarrow.Table
        Of the run.
    groups : Groups
    """
    top = sites.filter(pc.equal(sites["kind"].cast(pa.string()), "top"))
    rows = channel_rows(channels, top)
    group = _group_of(rows, _ints(top, "cluster"), groups)
    last = np.where(group < 0, np.iinfo(np.int64).max, group)
    sorting = np.lexsort((top["rank"].to_numpy(), last, rows))
    sorting = sorting[rows[sorting] >= 0]
    rows, group, top = rows[sorting], group[sorting], top.take(sorting)
    place = _count_up(rows, group)
    pictured = "image_id" in top.column_names
    blank = np.zeros(0, np.int64)
    image = top["image_id"].to_numpy() if pictured else blank
    sides = [top[name].to_numpy().astype(np.int64) for name in ("x0", "y0", "x1", "y1")] if (
        pictured
    ) else []  # fmt: skip
    box = np.stack(sides, 1) if pictured else blank.reshape(0, 4)
    bounds = np.searchsorted(rows, np.arange(len(channels) + 1))
    return Sites(Patches(rows, group, place, image, box), top, bounds)


def _keys(table: pa.Table, layers: list[str]) -> NDArray[np.int64]:
    """One number per (layer, channel), in no particular order."""
    found = pc.index_in(table["layer"].cast(pa.string()), pa.array(layers)).fill_null(len(layers))
    keys: NDArray[np.int64] = found.to_numpy().astype(np.int64) << 40
    return keys + table["channel"].to_numpy()


def _group_of(
    rows: NDArray[np.int64], clusters: NDArray[np.int64], groups: Groups
) -> NDArray[np.int64]:
    """Place of each site's cluster among its channel's; −1 without one."""
    places = dict(
        zip(zip(groups.row.tolist(), groups.cluster.tolist(), strict=True),
            groups.order.tolist(), strict=True)
    )  # fmt: skip
    pairs = zip(rows.tolist(), clusters.tolist(), strict=True)
    return np.fromiter((places.get(pair, -1) for pair in pairs), np.int64, len(rows))


def _ints(table: pa.Table, name: str) -> NDArray[np.int64]:
    values: NDArray[np.int64] = table[name].fill_null(-1).to_numpy().astype(np.int64)
    return values


def _count_up(*keys: NDArray[Any]) -> NDArray[np.int64]:
    """0, 1, 2 … within each run of equal keys."""
    if len(keys[0]) == 0:
        return np.zeros(0, np.int64)
    changed = np.zeros(len(keys[0]), bool)
    changed[0] = True
    for key in keys:
        changed[1:] |= key[1:] != key[:-1]
    starts = np.flatnonzero(changed)
    return np.arange(len(changed)) - np.repeat(starts, np.diff([*starts, len(changed)]))
