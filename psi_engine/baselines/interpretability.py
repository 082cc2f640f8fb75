"""How well examples explain a unit, judged by similarity in place of people: II and MIS.

References
----------
Klindt, Sanborn, Acosta, Poitevin, Miolane, "Identifying interpretable visual features in
artificial and biological neural systems", 2023 (arXiv:2310.11431): the interpretability index II.
Zimmermann, Klindt, Brendel, "Measuring mechanistic interpretability at scale without humans",
ICLR workshop Re-Align, and "Measuring per-unit interpretability at scale without humans",
NeurIPS, both 2024: the machine interpretability score MIS.
"""

from __future__ import annotations

import torch
from torch import Tensor

from psi_engine.baselines.rows import at_once, units
from psi_engine.errors import InputError
from psi_engine.ops.exact import fold_mean
from psi_engine.ops.random import hash_keys, permutations, string_key

_EXAMPLES = 9


def interpretability(
    top: Tensor,
    bottom: Tensor,
    seed: int = 0,
    trials: int = 20,
    temperature: float | None = 0.16,
) -> Tensor:
    """How well similarity to references tells a unit's top from its bottom images.

    Parameters
    ----------
    top, bottom : Tensor, floating (channels, patches, dim)
        Embeddings of the most and least activating images, at least 10 each.
    trials : int
        Each draws 9 references and a query from either side.
    temperature : float, optional
        MIS: the margin is divided by it. None: II, where it is the standard deviation of the
        trial's 36 similarities.

    Returns
    -------
    Tensor
        float64 (channels,) in [0, 1]: mean probability of the right answer; 0.5 is chance. NaN
        with a zero or non-finite row.

    Raises
    ------
    InputError
        Fewer than 10 images on a side, sides that do not fit, no trial, or a temperature that is
        not positive.

    Notes
    -----
    With s(q, E) the mean cosine of a query with nine references, E₊ from the top and E₋ from the
    bottom, the margin is s(q₊, E₊) − s(q₊, E₋) − s(q₋, E₊) + s(q₋, E₋), and the probability its
    logistic function. Here queries and references are drawn evenly from the images given.

    About 0.16: the authors of MIS fit one constant α to human answers, for DreamSim
    similarities. Code by one of them (``klindtlab/machine-interpretability``) has α = 0.16 and
    *multiplies* the margin by it, which keeps the score of any cosines within [0.34, 0.66]; for
    that number give 1/0.16. Divided, the same constant spreads the scores over [0, 1]. It was
    fitted for neither CLIP nor these crops: compare units by it, not with published numbers.
    """
    if top.ndim != 3 or (top.shape[0], top.shape[2]) != (bottom.shape[0], bottom.shape[-1]):
        raise InputError(
            "top and bottom do not fit",
            got=f"{tuple(top.shape)} and {tuple(bottom.shape)}",
            expected="(channels, patches, dim) with the same channels and dim",
        )
    if min(top.shape[1], bottom.shape[1]) < _EXAMPLES + 1:
        raise InputError(
            "too few examples",
            got=f"{top.shape[1]} top and {bottom.shape[1]} bottom",
            expected=f"at least {_EXAMPLES + 1} each",
        )
    if trials < 1:
        raise InputError("no trials", got=trials, expected="at least 1")
    if temperature is not None and not temperature > 0:
        raise InputError("temperature must be positive", got=temperature, fix="or None for II")
    size = at_once(max(top.shape[1], bottom.shape[1]), top.shape[2])
    sides = zip(top.split(size), bottom.split(size), strict=True)
    return torch.cat([_probability(*side, seed, trials, temperature) for side in sides])


def _probability(
    top: Tensor, bottom: Tensor, seed: int, trials: int, temperature: float | None
) -> Tensor:
    (high, high_usable), (low, low_usable) = units(top), units(bottom)
    total = torch.zeros(len(top), dtype=torch.float64, device=top.device)
    for trial in range(trials):
        query_high, references_high = _draw(high, seed, trial, 0)
        query_low, references_low = _draw(low, seed, trial, 1)
        queries = torch.cat([query_high, query_low], 1)
        # Grid rows: exact products, whatever the batch.
        to_high, to_low = (queries @ x.mT for x in (references_high, references_low))
        towards = fold_mean(to_high) - fold_mean(to_low)
        margin = towards[:, 0] - towards[:, 1]
        total += torch.sigmoid(margin / (temperature or _deviation(to_high, to_low)))
    return torch.where(high_usable & low_usable, total / trials, torch.nan)


def _draw(rows: Tensor, seed: int, trial: int, side: int) -> tuple[Tensor, Tensor]:
    """A query (channels, 1, dim) and nine other patches (channels, 9, dim)."""
    key = hash_keys(seed, string_key("baseline.mis"), trial, side, device=rows.device)
    order = permutations(key, rows.shape[1])
    return rows[:, order[:1]], rows[:, order[1 : _EXAMPLES + 1]]


def _deviation(to_high: Tensor, to_low: Tensor) -> Tensor:
    """Population standard deviation of a trial's similarities; 1 where all are equal."""
    all_of_them = torch.cat([to_high, to_low], -1).flatten(1)
    apart = all_of_them - fold_mean(all_of_them)[:, None]
    deviation = fold_mean(apart * apart).sqrt()
    return torch.where(deviation > 0, deviation, 1.0)
