"""Two scorings of the same channels: how far their rankings agree, and what moved them apart."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy import special, stats

from psi_engine.detection import Floats, interval, resample
from psi_engine.ops.contingency import normalized_mutual_information
from psi_engine.rank_correlation import LEAST, resampled_spearman
from psi_engine.types import COMPONENTS, Scores

CEILING = 0.99
"""PSI above this is as good as 1: what order is left there is that of large z."""

Columns = dict[str, Floats]
"""Measures by name, float64 (channels,) each; NaN where a channel could not be scored."""


def columns_of(scores: Scores) -> Columns:
    """The measures whose rankings are compared: log PSI, and of each component raw value and z.

    Ŝ, Q̂ and D̂ are not among them: the logistic function keeps the order of z.
    """
    found = {"log_psi": scores.log_psi.numpy()}
    if "q" in scores.available:
        found["log_psi_without_q"] = _log_psi(_logs(scores), leave_out="q")
    for suffix in ("_z", ""):
        found |= {x + suffix: getattr(scores, x + suffix).numpy() for x in scores.available}
    return found


def spearman(x: Floats, y: Floats) -> float | None:
    """Spearman's ρ of the pairs without NaN; None where fewer than four are left, or no spread."""
    both = ~(np.isnan(x) | np.isnan(y))
    x, y = x[both], y[both]
    if len(x) < LEAST or x.min() == x.max() or y.min() == y.max():
        return None
    return float(stats.spearmanr(x, y).statistic)


def agreement(one: Columns, other: Columns, *, key: int, resamples: int) -> list[dict[str, Any]]:
    """Spearman's ρ of each measure that both have, with its bootstrap interval over the channels.

    Parameters
    ----------
    one, other : mapping of str to ndarray, float64 (channels,)
    key : int
        Of the bootstrap's draws, the same for every measure.
    resamples : int

    Returns
    -------
    list of dict
        ``measure``, ``n`` (channels with both values), ``spearman``, ``spearman_low``,
        ``spearman_high``; None where there is no coefficient.
    """
    rows: list[dict[str, Any]] = []
    for measure in one:
        if measure not in other:
            continue
        x, y = one[measure], other[measure]
        both = ~(np.isnan(x) | np.isnan(y))
        rho = spearman(x, y)
        low = high = None
        if rho is not None:
            counts = resample(key, int(both.sum()), resamples)[:, 1:]
            draws = resampled_spearman(x[both], y[both], counts)
            low, high = (float(end) for end in interval(draws[~np.isnan(draws)]))
        rows.append({
            "measure": measure, "n": int(both.sum()),
            "spearman": rho, "spearman_low": low, "spearman_high": high,
        })  # fmt: skip
    return rows


def explain(one: Scores, other: Scores, same_patches: bool) -> dict[str, float | int | None]:
    """What of the scoring changed between two conditions, and how much of the ranking with it.

    Parameters
    ----------
    same_patches : bool
        Column i is the same patch in both, so that clusters can be compared.

    Returns
    -------
    dict
        - ``n``: channels with a PSI in both;
        - ``same_k``: share of them with the same k̂; ``spearman_same_k``, ``spearman_other_k``:
          ρ of log PSI among those, and among the others;
        - ``clusters``: mean normalised mutual information of the two partitions;
        - ``only_x`` for x in s, q, d: ρ of ``one``'s log PSI with itself after nothing but
          component x was taken from ``other``: the lowest names what moved the ranking;
        - ``without_x``: ρ of log PSI with component x left out of both;
        - ``spread``: interquartile range of log PSI in ``one``; ``change``: median absolute
          difference of log PSI;
        - ``ceiling``: share of channels with PSI above 0.99 in both.
    """
    first, second = _logs(one), _logs(other)
    x, y = one.log_psi.numpy(), other.log_psi.numpy()
    both = ~(np.isnan(x) | np.isnan(y))
    same = (one.n_clusters == other.n_clusters).numpy()
    width = min(one.assignments.shape[1], other.assignments.shape[1])
    clusters = None
    if same_patches and both.any():
        nmi = normalized_mutual_information(
            one.assignments[:, :width], other.assignments[:, :width]
        ).numpy()
        clusters = float(nmi[both].mean())
    found: dict[str, float | int | None] = {
        "n": int(both.sum()),
        "same_k": float(same[both].mean()) if both.any() else None,
        "spearman_same_k": spearman(x[both & same], y[both & same]),
        "spearman_other_k": spearman(x[both & ~same], y[both & ~same]),
        "clusters": clusters,
    }
    for component in COMPONENTS:
        there = component in first and component in second
        taken = _log_psi({**first, component: second[component]}) if there else x
        found[f"only_{component}"] = spearman(x, taken) if there else None
        rest = (_log_psi(logs, component) for logs in (first, second))
        found[f"without_{component}"] = spearman(*rest) if there and len(first) > 1 else None
    found["spread"] = (
        float(np.subtract(*np.quantile(x[both], (0.75, 0.25)))) if both.any() else None
    )
    found["change"] = float(np.median(np.abs(x - y)[both])) if both.any() else None
    top = np.minimum(x, y)[both] > np.log(CEILING)
    found["ceiling"] = float(top.mean()) if both.any() else None
    return found


def reliability(half: float, times: float) -> float:
    """Reliability of ``times`` as many patches as gave two halves a correlation of ``half``.

    Notes
    -----
    times·r/(1 + (times − 1)·r) (Spearman 1910, Brown 1910), which supposes that a score is an
    average over patches. Negative correlations count as 0.
    """
    r = max(half, 0.0)
    return times * r / (1 + (times - 1) * r)


def nested_correlation(half: float, halved: int, fewer: int, more: int) -> float:
    """Correlation of an average over ``fewer`` of the ``more`` patches with that over all.

    Parameters
    ----------
    half : float
        Correlation of two disjoint sets of ``halved`` patches.

    Notes
    -----
    √(r_fewer/r_more) with r the reliabilities above: with true variance τ² and σ² a patch, the
    covariance is τ² + σ²/more, and the variances τ² + σ²/fewer and τ² + σ²/more. Without any true
    variance √(fewer/more) is left.
    """
    if half <= 0:
        return float(np.sqrt(fewer / more))
    return float(np.sqrt(reliability(half, fewer / halved) / reliability(half, more / halved)))


def _logs(scores: Scores) -> Columns:
    """Logarithm of each available component's logistic score."""
    return {x: special.log_expit(getattr(scores, f"{x}_z").numpy()) for x in scores.available}


def _log_psi(logs: Columns, leave_out: str | None = None) -> Floats:
    kept = [values for name, values in logs.items() if name != leave_out]
    total: Floats = np.sum(kept, axis=0)
    return total
