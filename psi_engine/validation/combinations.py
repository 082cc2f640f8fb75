"""Ways to make one number of the components' evidence; the product, PSI, is one of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import special

Floats = NDArray[np.float64]

SOFTNESS = 3.0
"""Standard deviations over which :func:`soft_minimum` passes from one component to the other."""


class Evidence(NamedTuple):
    """What a combination may look at: one set of components under one choice of nulls.

    raw, z, p : by component (``s``, ``q`` where there are labels, ``d`` where there is text),
    float64 (units,), NaN where a unit has no score. kinds : str (units,), what each unit is.
    tuning : bool (units,), units of the half that may be fitted on.
    """

    raw: Mapping[str, Floats]
    z: Mapping[str, Floats]
    p: Mapping[str, Floats]
    kinds: NDArray[np.str_]
    tuning: NDArray[np.bool_]


Combination = Callable[[Evidence], Floats]
"""One number per unit, float64 (units,), high = polysemantic; kinds may be used of tuning only."""


def psi(evidence: Evidence) -> Floats:
    """Log PSI: the sum of log-sigmoids of z over the components (paper, section 3.4)."""
    return np.asarray(special.log_expit(_stacked(evidence.z)).sum(0))


def stouffer(evidence: Evidence) -> Floats:
    """Stouffer's combined z: Σ z / √components. One strong component makes up for a weak one."""
    z = _stacked(evidence.z)
    return np.asarray(z.sum(0) / len(z) ** 0.5)


def minimum(evidence: Evidence) -> Floats:
    """The weakest component's z, the order of PSI's own p (intersection–union)."""
    return np.asarray(_stacked(evidence.z).min(0))


def soft_minimum(evidence: Evidence) -> Floats:
    """A minimum that ties do not decide: −τ log Σ exp(−z/τ), τ = :data:`SOFTNESS`."""
    return np.asarray(-SOFTNESS * special.logsumexp(-_stacked(evidence.z) / SOFTNESS, axis=0))


def fisher(evidence: Evidence) -> Floats:
    """Fisher's −2 Σ log p; equal where all p-values are as small as the draws allow."""
    return np.asarray(-2 * np.log(_stacked(evidence.p)).sum(0))


def logistic(evidence: Evidence) -> Floats:
    """Log odds of a logistic regression on sign(z)·log(1 + |z|), fitted on the tuning half.

    Polysemantic units of unrelated classes against mono and noise units; random projections,
    which have classes of their own, are not fitted on. The kinds weigh the same.
    """
    from sklearn.linear_model import LogisticRegression

    z = _stacked(evidence.z).T
    x = np.sign(z) * np.log1p(np.abs(z))
    usable = np.isfinite(x).all(1)
    poly = np.char.endswith(evidence.kinds, "-unrelated")
    low = np.isin(evidence.kinds, ("mono", "noise", "noise-value"))
    fitted = evidence.tuning & usable & (poly | low)
    values = np.full(len(x), np.nan)
    kinds, counts = np.unique(evidence.kinds[fitted], return_counts=True)
    if not (poly & fitted).any() or not (low & fitted).any():
        return values
    weight = dict(zip(kinds, 1 / counts, strict=True))
    model = LogisticRegression().fit(
        x[fitted], poly[fitted], sample_weight=[weight[kind] for kind in evidence.kinds[fitted]]
    )
    values[usable] = model.decision_function(x[usable])
    return values


COMBINATIONS: Mapping[str, Combination] = {
    "PSI": psi,
    "Stouffer": stouffer,
    "minimum": minimum,
    "soft minimum": soft_minimum,
    "Fisher": fisher,
    "logistic": logistic,
}
"""Combinations by name; a new one is a function and a name."""

FITTED = frozenset({"logistic"})
"""Those that are fitted on the tuning half."""


def _stacked(components: Mapping[str, Floats]) -> Floats:
    return np.stack(list(components.values()))
