"""Nulls ``neighborhood``: sets as coherent as the channel, but of one kind.

A set is n patches drawn from the m nearest pool neighbours of a random anchor, m log-uniform
from n to the size of the pool: tight sets where m is small, random ones where it is large. Over
many sets the mean and sd of S (or D) are smooth functions of the mean cosine, and a channel is
compared with them at its own mean cosine. One table per (pool, n), and per k̂ for D.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from psi_engine.nulls.base import Batch, Call
from psi_engine.nulls.patch_sets import clarity_table, distinctness_table, separability_table
from psi_engine.ops.exact import cosines, fold_sum
from psi_engine.ops.random import uniform
from psi_engine.statistics import TIE, NullSummary, by_group, permutation_p, standardise

MOST_ROWS = 8192
"""Rows of the pool among which neighbours are looked for: cost grows with its size."""

WINDOW = 0.25
"""Share of the sets that one local fit looks at, the nearest ones in mean cosine."""

_LOTS = 1 << 18
# Pool rows that draw lots together.

SETS_PER_REPLICATE = 4
"""Sets drawn for each replicate asked for: a local fit looks at a part of them only, and its
moments should be as well known as those of the other nulls."""

LEAST_WINDOW = 40
"""Sets in a window, at least, where there are so many."""


def neighborhood_s(batch: Batch, call: Call) -> NullSummary:
    """Compare S with S of equally coherent neighbourhoods."""
    clarity = clarity_table(neighbour_sets, batch.n, call)
    values = separability_table(neighbour_sets, batch.n, call)
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
    for part in replicates.split(call.chunk(64 * count)):
        near = torch.argsort(
            cosines(units[anchors[part]], units), dim=1, descending=True, stable=True
        )
        # a random order of the neighbours: the first n of those within reach are the draw
        lot = uniform(
            call.keys(
                "null.neighbourhood.draw", n, part[:, None], torch.arange(count, device=call.device)
            )
        )
        within = torch.arange(count, device=call.device) < sizes[part, None]
        chosen = torch.where(within, lot, 2.0).topk(n, dim=1, largest=False).indices
        sets.append(rows[near.gather(1, chosen)])
    return torch.cat(sets)


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
    """A table and what its sets say of themselves, float64 (sets,) each.

    square : leave-one-out residuals squared. standard : those residuals standardised, ascending.
    """

    where: Tensor
    values: Tensor
    square: Tensor
    standard: Tensor


def _smooth(where: Tensor, values: Tensor, window: int) -> _Smooth:
    own, leverage = _fit(where, where, values, window)
    residual = (values - own) / (1 - leverage).clamp(min=0.1)
    variance = _local_mean(where, where, residual**2, window)
    standard = standardise(residual, variance.sqrt())
    return _Smooth(where, values, residual**2, torch.sort(standard).values)


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
    Mean: local linear regression with tricube weights over the nearest quarter of the sets
    (Cleveland 1979). Variance: the same weights' mean of squared leave-one-out residuals. The
    p-value ranks the channel's standardised residual among the sets' own leave-one-out ones.
    Off the table's range the channel is compared at its nearest end.
    """
    window = min(len(table), max(LEAST_WINDOW, math.ceil(WINDOW * len(table))))
    low, high = table_where.min(), table_where.max()
    call.tally(
        "comparisons lie off the neighbourhoods' range of mean cosine "
        f"({float(low):.3f} to {float(high):.3f}) and were made at its end",
        int(((where < low) | (where > high)).sum()),
    )
    at = where.clamp(low, high)
    smooth = call.once(  # it keeps both tables, so no other can come to have their addresses
        ("neighbourhood", id(table_where), id(table)), lambda: _smooth(table_where, table, window)
    )
    mean, _ = _fit(at, table_where, table, window)
    std = _local_mean(at, table_where, smooth.square, window).sqrt()
    z = standardise(observed - mean, std)
    reached = len(table) - torch.searchsorted(smooth.standard, z - TIE)
    return NullSummary(mean, std, permutation_p(reached, len(table)))


def _weights(at: Tensor, where: Tensor, window: int) -> Tensor:
    """Tricube weights (queries, sets), zero outside the ``window`` nearest sets of each query."""
    distance = (at[:, None] - where).abs()
    reach = distance.kthvalue(window, dim=1, keepdim=True).values * (1 + 1e-9) + 1e-12
    inside = (1 - (distance / reach) ** 3).clamp(min=0)
    return inside**3


def _fit(at: Tensor, where: Tensor, values: Tensor, window: int) -> tuple[Tensor, Tensor]:
    """Local linear fit at the queries, and the weight of a set lying exactly at each query."""
    fits, leverages = [], []
    for part in at.split(512):
        weight = _weights(part, where, window)
        offset = where - part[:, None]
        total = fold_sum(weight)
        first = fold_sum(weight * offset)
        second = fold_sum(weight * offset**2)
        spread = second * total - first**2
        # sets of one mean cosine carry no slope: fall back to their plain mean
        flat = spread <= 1e-12 * total**2
        scale = torch.where(flat, 1.0, spread)
        slope_free = (second[:, None] - first[:, None] * offset) / scale[:, None]
        kernel = weight * torch.where(flat[:, None], 1.0 / total[:, None], slope_free)
        fits.append(fold_sum(kernel * values))
        leverages.append(torch.where(flat, 1.0 / total, second / scale))
    return torch.cat(fits), torch.cat(leverages)


def _local_mean(at: Tensor, where: Tensor, values: Tensor, window: int) -> Tensor:
    parts = []
    for part in at.split(512):
        weight = _weights(part, where, window)
        parts.append(fold_sum(weight * values) / fold_sum(weight))
    return torch.cat(parts)
