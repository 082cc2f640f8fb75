"""Q-null ``exact``: mean and variance of NMI under permutation, in closed form.

With T(n) = n·log n the mutual information of two labelings of N patches is
(ΣT(n_ij) − ΣT(a_i) − ΣT(b_j) + T(N))/N, and only the counts n_ij change when labels are permuted.
They are hypergeometric (Vinh, Epps, Bailey, JMLR 11, 2010, section 3); the second moment is a sum
over pairs of cells (Romano, Bailey, Nguyen, Verspoor, ICML 2014, theorem 1). Cells with the same
sizes share one law, and T(0) = T(1) = 0, so labels met once drop out.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import special
from torch import Tensor

from psi_engine.nulls.base import Batch, Call
from psi_engine.nulls.permutation import permutation
from psi_engine.ops.exact import fold_sum
from psi_engine.statistics import NullSummary

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

_CELLS = 1 << 22
# Numbers in one temporary array of a joint law.
_CANCELLED = 1e-13
# A variance this small beside the second moment is what subtracting left of its rounding.


class Law(NamedTuple):
    """An expectation over cells of given class sizes, and the largest count they can hold.

    Both take (total, sizes…), each (tuples,); ``expectation`` first takes the counts 0 … largest.
    """

    expectation: Callable[..., Floats]
    largest: Callable[..., Ints]


class _Sizes(NamedTuple):
    """Different sizes of one labeling's classes and how often each occurs, (channels, slots)."""

    size: Ints
    times: Ints


def exact_moments(batch: Batch, call: Call) -> NullSummary:
    """Compare Q with its exact permutation moments; p and quantiles still come from draws."""
    if batch.labels is None:
        raise ValueError("the exact null needs labels")
    labels, most = batch.labels, min(call.config.k_max, batch.n - 1)
    # pairs of cells by their sizes, several numbers each
    each = 64 * (_slots(batch.n, most) * _slots(batch.n, batch.n)) ** 2
    parts = [
        nmi_moments(batch.assignments[rows], labels[rows], most)
        for rows in torch.arange(len(labels), device=call.device).split(call.chunk(each))
    ]
    mean, std = (torch.cat(x) for x in zip(*parts, strict=True))
    return permutation(batch, call)._replace(mean=mean, std=std)


def nmi_moments(
    assignments: Tensor, labels: Tensor, most_clusters: int | None = None
) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of NMI over all permutations of the known labels.

    Parameters
    ----------
    assignments, labels : Tensor, int64 (channels, patches)
        A negative value in either leaves the patch out.
    most_clusters : int, optional
        What no channel has more of.

    Returns
    -------
    tuple of Tensor
        float64 (channels,) twice; 0 and 0 where either labeling has no entropy.
    """
    known = (assignments >= 0) & (labels >= 0)
    total = known.sum(1).cpu().numpy()
    n = labels.shape[1]
    clusters = _sizes(assignments.masked_fill(~known, -1), most_clusters or n)
    classes = _sizes(labels.masked_fill(~known, -1), n)
    first, second = _table_moments(total, clusters, classes)
    spent = [(x.times * _t(x.size)).sum(1) for x in (clusters, classes)]
    whole = _t(total)
    entropies = np.maximum(2 * whole - spent[0] - spent[1], 0.0)
    defined = (whole - spent[0] > 1e-9) & (whole - spent[1] > 1e-9)
    scale = np.where(defined, 2.0 / np.where(defined, entropies, 1.0), 0.0)
    mean = scale * (first - spent[0] - spent[1] + whole)
    variance = second - first**2
    variance = np.where(variance > _CANCELLED * second, variance, 0.0)
    std = scale * np.sqrt(variance)
    return tuple(torch.from_numpy(x).to(assignments.device) for x in (mean, std))  # type: ignore[return-value]


def _slots(n: int, most: int) -> int:
    """How many different sizes of at most so many classes can add up to n."""
    return min(most, int((8 * n + 1) ** 0.5 + 1) // 2)


def _sizes(labels: Tensor, most: int) -> _Sizes:
    """Different class sizes of each row, in ascending order; 0 times where a slot is empty."""
    channels, n = labels.shape
    same = (labels[:, :, None] == labels[:, None, :]) & (labels >= 0)[:, :, None]
    size = same.sum(-1)  # of the class of each patch
    counts = torch.zeros(channels, n + 1, dtype=torch.int64, device=labels.device)
    counts.scatter_add_(1, size, torch.ones_like(size))
    times = (counts // torch.arange(n + 1, device=labels.device).clamp(min=1)).cpu().numpy()
    times[:, 0] = 0
    order = np.argsort(times == 0, axis=1, kind="stable")[:, : _slots(n, most)]
    taken = np.take_along_axis(times, order, 1)
    return _Sizes(np.where(taken > 0, order, 0), taken)


def _table_moments(total: Ints, clusters: _Sizes, classes: _Sizes) -> tuple[Floats, Floats]:
    """First and second moment of ΣT(n_ij) of each channel."""
    (a, a_times), (b, b_times) = clusters, classes
    first = _sum_over(_MEAN, (total, a, b), (a_times, b_times))
    second = _sum_over(_SQUARE, (total, a, b), (a_times, b_times))
    a_pairs, b_pairs = _pairs(a_times), _pairs(b_times)
    second = second + _sum_over(_LINE, (total, a, b, b), (a_times, b_pairs))
    second = second + _sum_over(_LINE, (total, b, a, a), (b_times, a_pairs))
    second = second + _sum_over(_APART, (total, a, a, b, b), (a_pairs, b_pairs))
    return first, second


def _pairs(times: Ints) -> Ints:
    """How many ordered pairs of different classes have each pair of sizes: (channels, s, s)."""
    slots = np.arange(times.shape[1])
    pairs = times[:, :, None] * times[:, None, :]
    pairs[:, slots, slots] -= times
    return pairs


def _sum_over(law: Law, sizes: tuple[Ints, ...], times: tuple[Ints, Ints]) -> Floats:
    """Σ times · law over all combinations of sizes of each channel: float64 (channels,)."""
    channels = len(sizes[0])
    left, right = times
    weight = left.reshape(channels, -1)[:, :, None] * right.reshape(channels, -1)[:, None, :]
    axes = len(sizes) - 1
    arguments = []
    for place, size in enumerate(sizes):
        shape = [channels] + [1] * axes
        if place:
            shape[place] = size.shape[1]
        full = [channels, *(x.shape[1] for x in sizes[1:])]
        arguments.append(np.broadcast_to(size.reshape(shape), full).reshape(channels, -1))
    flat = weight.reshape(channels, -1)
    values = np.zeros(flat.shape)
    used = flat > 0
    tuples, where = np.unique(
        np.stack([x[used] for x in arguments], 1), axis=0, return_inverse=True
    )
    values[used] = _by_shape(law, tuples)[where.reshape(-1)]
    return fold_sum(torch.from_numpy(values * flat)).numpy()


def _by_shape(law: Law, tuples: Ints) -> Floats:
    """Evaluate a law on tuples, together where the counts can be equally large."""
    out = np.zeros(len(tuples))
    longest = law.largest(*tuples.T)
    for length in np.unique(longest).tolist():
        rows = np.flatnonzero(longest == length)
        step = max(1, _CELLS // (length + 1) ** 2)
        for start in range(0, len(rows), step):
            part = rows[start : start + step]
            out[part] = law.expectation(np.arange(length + 1), *tuples[part].T)
    return out


def _t(n: Ints) -> Floats:
    """T(n) = n·log n, 0 at 0."""
    return np.asarray(special.xlogy(n, n))


def _hypergeometric(x: Ints, total: Ints, marked: Ints, drawn: Ints) -> Floats:
    """P(x of ``drawn`` are marked) when ``marked`` of ``total`` are; 0 where impossible."""
    rest = total - marked
    possible = (x >= 0) & (x <= marked) & (x <= drawn) & (drawn - x <= rest) & (drawn <= total)

    def log_choose(n: Ints, k: Ints) -> Floats:
        n, k = np.where(possible, n, 0), np.where(possible, k, 0)
        return special.gammaln(n + 1) - special.gammaln(k + 1) - special.gammaln(n - k + 1)

    log_p = log_choose(marked, x) + log_choose(rest, drawn - x) - log_choose(total, drawn)
    return np.where(possible, np.exp(log_p), 0.0)


def _total(terms: Floats) -> Floats:
    return fold_sum(torch.from_numpy(terms)).numpy()


def _mean_of(power: int) -> Callable[..., Floats]:
    def expectation(x: Ints, total: Ints, a: Ints, b: Ints) -> Floats:
        law = _hypergeometric(x, total[:, None], b[:, None], a[:, None])
        return _total(_t(x) ** power * law)

    return expectation


def _same_line(x: Ints, total: Ints, a: Ints, b: Ints, c: Ints) -> Floats:
    """E[T(n)T(m)] of one class of size a with two different classes of sizes b and c."""
    n, m = x[None, :, None], x[None, None, :]
    total, a, b, c = (v[:, None, None] for v in (total, a, b, c))
    second = _total(_t(m) * _hypergeometric(m, total - b, c, a - n))
    first = _hypergeometric(n, total, b, a)[..., 0]
    return _total(_t(x) * first * second)


def _apart(x: Ints, total: Ints, a: Ints, a2: Ints, b: Ints, b2: Ints) -> Floats:
    """E[T(n)T(m)], n in classes of sizes (a, b), m in two other classes of sizes (a2, b2).

    Given n, the second class of the first labeling holds w of the remaining b − n; given w, its
    other a2 − w members hold m of the b2 among those not of b.
    """
    rows, columns = x[None, :, None], x[None, None, :]
    total, a, a2, b, b2 = (v[:, None, None] for v in (total, a, a2, b, b2))
    given_w = _total(_t(columns) * _hypergeometric(columns, total - b, b2, a2 - rows))
    given_n = _total(_hypergeometric(columns, total - a, b - rows, a2) * given_w[:, None, :])
    first = _hypergeometric(rows, total, b, a)[..., 0]
    return _total(_t(x) * first * given_n)


def _largest_cell(total: Ints, a: Ints, b: Ints) -> Ints:
    return np.minimum(a, b)


def _largest_line(total: Ints, a: Ints, b: Ints, c: Ints) -> Ints:
    return np.minimum(a, np.maximum(b, c))


def _largest_apart(total: Ints, a: Ints, a2: Ints, b: Ints, b2: Ints) -> Ints:
    crossed = np.minimum(a2, np.maximum(b, b2))
    return np.maximum(np.minimum(a, b), crossed)


_MEAN = Law(_mean_of(1), _largest_cell)
_SQUARE = Law(_mean_of(2), _largest_cell)
_LINE = Law(_same_line, _largest_line)
_APART = Law(_apart, _largest_apart)
