"""The nulls by component and name.

To add a null write ``null(batch, call) -> NullSummary`` in a file of its own, enter it in
``NULLS`` below and in the choices of :mod:`psi_engine.config`.
"""

from __future__ import annotations

from psi_engine.nulls.base import NullFunction
from psi_engine.nulls.exact_moments import exact_moments
from psi_engine.nulls.neighborhood import neighborhood_d, neighborhood_s
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
