"""The nulls by component and name.

To add a null write ``null(batch, call) -> NullSummary`` in a file of its own, enter it in
``NULLS`` below and in the choices of :mod:`psi_engine.config`.
"""

from __future__ import annotations

from psi_engine.nulls.base import Call, NullFunction
from psi_engine.nulls.exact_moments import exact_moments
from psi_engine.nulls.neighborhood import SETS_PER_REPLICATE, neighborhood_d, neighborhood_s
from psi_engine.nulls.partition import partition
from psi_engine.nulls.permutation import permutation
from psi_engine.nulls.pool import pool_d, pool_s
from psi_engine.nulls.rotation import rotation
from psi_engine.nulls.rotation_samples import (
    rotation_samples,
    rotation_shared,
    rotation_tangent,
)
from psi_engine.nulls.text_rotation import text_rotation
from psi_engine.nulls.text_shuffle import text_shuffle
from psi_engine.nulls.unrelated_text import unrelated_text
from psi_engine.types import NullDraws

NULLS: dict[str, dict[str, NullFunction]] = {
    "s": {
        "rotation-shared": rotation_shared,
        "rotation": rotation,
        "rotation-samples": rotation_samples,
        "rotation-tangent": rotation_tangent,
        "pool": pool_s,
        "neighborhood": neighborhood_s,
    },
    "q": {"permutation": permutation, "exact": exact_moments},
    "d": {
        "text-rotation": text_rotation,
        "unrelated-text": unrelated_text,
        "text-shuffle": text_shuffle,
        "partition": partition,
        "pool": pool_d,
        "neighborhood": neighborhood_d,
    },
}
"""Nulls by component and name."""


def nulls_of(call: Call) -> dict[str, NullDraws]:
    """The nulls a call compares with, by component: those of its settings, where they can be had.

    What takes another's place is noted.
    """
    config = call.config
    names = {"s": config.s_null, "q": config.q_null, "d": config.d_null}
    if names["d"] == "unrelated-text" and call.unrelated is None and call.texts is not None:
        call.note(
            "d_null 'unrelated-text' needs a bank of unrelated texts and none was given: "
            "'text-shuffle' was used"
        )
        names["d"] = "text-shuffle"
    return {
        component: NullDraws(
            name, config.replicates * (SETS_PER_REPLICATE if name == "neighborhood" else 1)
        )
        for component, name in names.items()
    }
