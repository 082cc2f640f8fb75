"""How well scores tell the planted units apart."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from psi_engine.demo.planted import planted_kinds
from psi_engine.detection import rank_auroc
from psi_engine.errors import InputError
from psi_engine.types import Scores

if TYPE_CHECKING:
    import pyarrow as pa

MEASURES = {"PSI": "log_psi", "S": "s"}
"""What is compared, by the column it is read from."""


def auroc(
    scores: Scores | pa.Table | ArrayLike, kinds: Sequence[str] | None = None
) -> dict[str, dict[str, float]]:
    """AUROC of planted polysemantic units against monosemantic and against random ones.

    Parameters
    ----------
    scores : Scores, pyarrow.Table or array
        One row per planted unit in channel order: the columns ``log_psi`` and ``s`` are read.
        An array stands for log PSI itself.
    kinds : sequence of str, optional
        Kind of each row; None = :func:`planted_kinds`.

    Returns
    -------
    dict
        ``{"PSI": {"mono": …, "random": …}, "S": {…}}``: probability that a unit with two or
        more concepts scores above one with one concept, or above a random one; ties count half.

    Raises
    ------
    InputError
        Rows and kinds differ in number, or a kind is missing.

    Notes
    -----
    A unit without a score counts against the measure: lowest where it should be high, highest
    where it should be low.
    """
    kind = np.array(planted_kinds() if kinds is None else kinds)
    poly = np.char.startswith(kind, "poly")
    result: dict[str, dict[str, float]] = {}
    for name, values in _measures(scores).items():
        if values.shape != kind.shape:
            raise InputError(
                "scores do not match the planted units", got=values.shape, expected=kind.shape
            )
        high = np.where(np.isnan(values[poly]), -np.inf, values[poly])
        result[name] = {}
        for other in ("mono", "random"):
            low = np.where(np.isnan(values[kind == other]), np.inf, values[kind == other])
            result[name][other] = rank_auroc(high, low)
    return result


def _measures(scores: Scores | pa.Table | ArrayLike) -> dict[str, NDArray[np.float64]]:
    if isinstance(scores, Scores):
        scores = scores.to_arrow()
    column = getattr(scores, "column", None)
    if column is None:
        return {"PSI": np.asarray(scores, np.float64)}
    return {
        name: column(source).to_numpy(zero_copy_only=False).astype(np.float64)
        for name, source in MEASURES.items()
    }
