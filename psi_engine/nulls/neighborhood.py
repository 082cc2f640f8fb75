"""Nulls ``neighborhood``: sets as coherent as the channel, but of one kind.

A set is n patches drawn from the m nearest pool neighbours of a random anchor, m log-uniform
from n to the size of the pool: tight sets where m is small, random ones where it is large. Over
many sets the mean and sd of S (or D) are smooth functions of the mean cosine, and a channel is
compared with them at its own mean cosine. One table per (pool, n), and per k̂ for D.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from psi_engine.nulls.base import Batch, Call
from psi_engine.nulls.patch_sets import clarity_table, distinctness_table, separability_table
from psi_engine.ops.exact import GRID, cosines, fold_sum, near
from psi_engine.ops.random import uniform
from psi_engine.statistics import (
    EPSILON,
    TIE,
    NullSummary,
    by_group,
    permutation_p,
    quantiles,
    standardise,
)

MOST_ROWS = 8192
"""Rows of the pool among which neighbours are looked for: cost grows with its size."""

WINDOW = 0.25
"""Share of the sets that one local fit looks at, the nearest ones in mean cosine."""

MOST_WINDOW = 2000
"""Sets in a window, at most: moments of so many are known to some 2 %, and a fit at each of the
sets would otherwise cost the square of their number."""

_LOTS = 1 << 18
# Pool rows that draw lots together.

SETS_PER_REPLICATE = 4
"""Sets drawn for each replicate asked for: a local fit looks at a part of them only, and its
moments should be as well known as those of the other nulls."""

LEAST_WINDOW = 40
"""Sets in a window, at least, where there are so many."""


def neighborhood_s(batch: Batch, call: Call) -> NullSummary:
    """Compare S with S of equally coherent neighbourhoods."""
    values = separability_table(neighbour_sets, batch.n, call)
    clarity = clarity_table(neighbour_sets, batch.n, call)  # known from the same pass
    return compare_at(batch.clarity, batch.s, clarity, values, call)


def neighborhood_d(batch: Batch, call: Call) -> NullSummary:
    """Compare D with D of equally coherent neighbourhoods, clustered at the channel's k̂."""
    if batch.d is None:
        raise ValueError("a D null needs D")
    observed = batch.d
    clarity = clarity_table(neighbour_sets, batch.n, call)

    def compare(k: int, rows: Tensor) -> NullSummary:
        values = distinctness_table(neighbour_sets, batch.n, k, call)
        return compare_at(batch.clarity[rows], observed[rows], clarity, values, call)

    return by_group(batch.n_clusters, compare)


def neighbour_sets(n: int, call: Call) -> Tensor:
    """Positions of each set's patches: int64 (SETS_PER_REPLICATE · replicates, n)."""
    rows = _candidates(n, call)
    count = len(rows)
    units = call.pool.take(rows)
    replicates = torch.arange(SETS_PER_REPLICATE * call.config.replicates, device=call.device)
    anchors = (uniform(call.keys("null.neighbourhood.anchor", n, replicates)) * count).long()
    share = uniform(call.keys("null.neighbourhood.size", n, replicates)).tolist()
    sizes = torch.tensor(
        [min(count, round(n * math.exp(x * math.log(count / n)))) for x in share],
        device=call.device,
    )
    sets = []
    for part in replicates.split(call.chunk(48 * count + 12 * units.shape[1])):
        order = _nearest_first(units[anchors[part]], units)
        keys = call.keys("null.neighbourhood.draw", n, part)
        ranks = _subsets(keys, sizes[part], n, count)
        sets.append(rows[order.gather(1, ranks) % count])
    return torch.cat(sets)


def _nearest_first(anchors: Tensor, units: Tensor) -> Tensor:
    """Rows of the pool by falling cosine to each anchor: int64 (anchors, rows), row in modulo.

    Cosine and row make one whole number, so no two are equal and any sort gives the same order.
    """
    count = len(units)
    order = torch.empty(len(anchors), count, dtype=torch.int64, device=units.device)
    step = near(units, units.shape[1])
    for start in range(0, count, step):
        part = slice(start, min(start + step, count))
        place = torch.arange(part.start, part.stop, device=units.device)
        falling = (cosines(anchors, units[part]) * (-1 / GRID)).to(torch.int64)
        order[:, part] = falling.mul_(count).add_(place)
    if order.device.type == "cpu":
        order.numpy().sort(axis=1)  # several times faster than Torch's on a CPU
        return order
    return torch.sort(order, dim=1).values


def _subsets(keys: Tensor, sizes: Tensor, n: int, most: int) -> Tensor:
    """Uniform subsets of n of the numbers below each size: int64 (sets, n); sizes ≤ ``most``.

    Floyd's algorithm (Bentley and Floyd, "A sample of brilliance", CACM 1987): n draws a set,
    whatever its size. The subset is uniform; the order within it is not.
    """
    taken = torch.zeros(len(keys), most, dtype=torch.bool, device=keys.device)
    chosen = torch.empty(len(keys), n, dtype=torch.int64, device=keys.device)
    for i in range(n):
        last = sizes - n + i
        lot = (uniform(keys, i) * (last + 1)).to(torch.int64)
        again = taken.gather(1, lot[:, None])[:, 0]
        chosen[:, i] = torch.where(again, last, lot)
        taken.scatter_(1, chosen[:, i : i + 1], True)
    return chosen


def _candidates(n: int, call: Call) -> Tensor:
    """Pool positions where neighbours are looked for: all, or a keyed part of a large pool."""
    size = len(call.pool)
    most = max(MOST_ROWS, n)
    if size <= most:
        return torch.arange(size, device=call.device)
    call.note(f"neighbours were looked for among {most} of the pool's {size} rows")
    lots = positions = torch.empty(0, dtype=torch.int64, device=call.device)
    for start in range(0, size, _LOTS):  # the pool may be every embedding of a large call
        more = torch.arange(start, min(start + _LOTS, size), device=call.device)
        lots = torch.cat([lots, call.keys("null.neighbourhood.rows", more)])
        positions = torch.cat([positions, more])
        least = torch.argsort(lots, stable=True)[:most].sort().values
        lots, positions = lots[least], positions[least]
    return positions


class _Smooth(NamedTuple):
    """A table by rising mean cosine and what its sets say of themselves, float64 (sets,) each.

    square : leave-one-out residuals squared. standard : those residuals standardised, ascending.
    quantiles : of those, (41,).
    window : sets that a fit looks at. width : sets read for it, the window and those tied with
    its ends; the table's alone to say, so that no sum depends on the channels.
    held : the table as it was given, kept so that no other can come to have its address.
    """

    where: Tensor
    values: Tensor
    square: Tensor
    standard: Tensor
    quantiles: Tensor
    window: int
    width: int
    held: tuple[Tensor, Tensor]


def _smooth(where: Tensor, values: Tensor, call: Call) -> _Smooth:
    size = len(values)
    window = min(size, MOST_WINDOW, max(LEAST_WINDOW, math.ceil(WINDOW * size)))
    order = torch.argsort(where, stable=True)
    ties = int(torch.unique_consecutive(where[order], return_counts=True)[1].max())
    width = min(size, window + 2 * (ties - 1))
    empty = where.new_empty(0)
    held = (where, values)
    table = _Smooth(where[order], values[order], empty, empty, empty, window, width, held)
    own, leverage = _fit(table.where, table, call)
    residual = (table.values - own) / (1 - leverage).clamp(min=0.1)
    table = table._replace(square=residual**2)
    standard = standardise(residual, _local_variance(table.where, table, call).sqrt())
    own = quantiles(standard[None])[0].to(torch.float64)
    return table._replace(standard=torch.sort(standard).values, quantiles=own)


def compare_at(
    where: Tensor, observed: Tensor, table_where: Tensor, table: Tensor, call: Call
) -> NullSummary:
    """Compare each channel with the table at its own mean cosine.

    Parameters
    ----------
    where, observed : Tensor, float64 (channels,)
        Mean cosine and score of each channel.
    table_where, table : Tensor, float64 (sets,)

    Notes
    -----
    Mean: local linear regression with tricube weights over the nearest quarter of the sets, 2000
    at most (Cleveland 1979). Variance: the same weights' mean of squared leave-one-out residuals.
    The p-value ranks the channel's standardised residual among the sets' own leave-one-out ones;
    the quantiles are those residuals', brought to the mean and spread at the channel.
    Off the table's range the channel is compared at its nearest end.
    """
    low, high = table_where.min(), table_where.max()
    call.tally(
        "comparisons lie off the neighbourhoods' range of mean cosine "
        f"({float(low):.3f} to {float(high):.3f}) and were made at its end",
        int(((where < low) | (where > high)).sum()),
    )
    at = where.clamp(low, high)
    smooth = call.once(
        ("neighbourhood", id(table_where), id(table)), lambda: _smooth(table_where, table, call)
    )
    mean, _ = _fit(at, smooth, call)
    std = _local_variance(at, smooth, call).sqrt()
    z = standardise(observed - mean, std)
    reached = len(table) - torch.searchsorted(smooth.standard, z - TIE)
    shape = mean[:, None] + (std[:, None] + EPSILON) * smooth.quantiles
    p = permutation_p(reached, len(table))
    return NullSummary(mean, std, p, shape.to(torch.float32))


class _Window(NamedTuple):
    """Sets near some queries, float64 or int64 (queries, width).

    place : in the sorted table. offset : mean cosine less the query's. weight : tricube, zero
    outside the nearest sets.
    """

    place: Tensor
    offset: Tensor
    weight: Tensor


def _windows(at: Tensor, table: _Smooth, call: Call) -> Iterator[_Window]:
    """The windows of the queries in turn, in parts that a cache holds."""
    where, window, width = table.where, table.window, table.width
    # of a sorted table the nearest sets are neighbours: the first run whose successor is no nearer
    edges = where[: len(where) - window] + where[window:]
    for part in at.split(call.near_chunk(80 * width)):
        start = torch.searchsorted(edges, 2 * part)
        ends = torch.stack([where[start], where[start + window - 1]])
        reach = (ends - part).abs().amax(0) * (1 + 1e-9) + 1e-12
        first = torch.searchsorted(where, where[start]).clamp(max=len(where) - width)
        place = first[:, None] + torch.arange(width, device=where.device)
        offset = where[place] - part[:, None]
        inside = (1 - (offset.abs() / reach[:, None]) ** 3).clamp_(min=0)
        yield _Window(place, offset, inside**3)


def _fit(at: Tensor, table: _Smooth, call: Call) -> tuple[Tensor, Tensor]:
    """Local linear fit at the queries, and the weight of a set lying exactly at each query."""
    fits, leverages = [], []
    for place, offset, weight in _windows(at, table, call):
        sloped = weight * offset
        total = fold_sum(weight)
        first = fold_sum(sloped)
        second = fold_sum(sloped * offset)
        spread = second * total - first**2
        # sets of one mean cosine carry no slope: fall back to their plain mean
        flat = spread <= 1e-12 * total**2
        scale = torch.where(flat, 1.0, spread)
        slope_free = (second[:, None] - first[:, None] * offset) / scale[:, None]
        kernel = weight * torch.where(flat[:, None], 1.0 / total[:, None], slope_free)
        fits.append(fold_sum(kernel * table.values[place]))
        leverages.append(torch.where(flat, 1.0 / total, second / scale))
    return torch.cat(fits), torch.cat(leverages)


def _local_variance(at: Tensor, table: _Smooth, call: Call) -> Tensor:
    return torch.cat(
        [
            fold_sum(weight * table.square[place]) / fold_sum(weight)
            for place, _, weight in _windows(at, table, call)
        ]
    )
