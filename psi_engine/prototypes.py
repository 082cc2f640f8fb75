"""Cluster prototypes of a finished run: where in the encoder's space each cluster lies."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from psi_engine.errors import InputError
from psi_engine.ops.exact import unit_rows
from psi_engine.scores.distinctness import prototypes as mean_directions
from psi_engine.stored import StoredLayer

_BYTES = 1 << 26
# Temporaries of the channels that are worked on together.


class Prototypes(NamedTuple):
    """One row per cluster, channel by channel in the layer's order, clusters ascending.

    channel : int64 (n,), index in the layer. cluster : int64 (n,). vectors : float32 (n, dim),
    unit rows.
    """

    channel: Tensor
    cluster: Tensor
    vectors: Tensor


def prototypes(layer: StoredLayer, assignments: Tensor) -> Prototypes:
    """Mean embedding of the patches of each cluster, of length one.

    Parameters
    ----------
    layer : StoredLayer
    assignments : Tensor, int64 (channels, patches)
        Cluster of each patch, −1 = none, such as :meth:`StoredRun.assignments` gives.

    Returns
    -------
    Prototypes
        A channel that was not scored has no clusters and no rows; nor has a cluster whose
        members cancel out exactly. A row's bits depend on its own patches only.

    Raises
    ------
    InputError
        The assignments do not have the layer's shape.

    Notes
    -----
    The vectors are those of :func:`psi_engine.scores.describe.describe_clusters`.
    """
    rows = layer.rows
    if assignments.shape != rows.shape:
        raise InputError(
            f"assignments do not fit {layer.name}",
            got=tuple(assignments.shape),
            expected=f"(channels, patches) = {tuple(rows.shape)}",
        )
    k = 1 + int(assignments.max())
    dim = layer.all_embeddings.shape[1]
    step = max(1, _BYTES // (12 * dim * (rows.shape[1] + k)))
    parts = [
        _of_channels(layer, assignments, rows, slice(start, start + step), k)
        for start in range(0, len(rows), step)
    ]
    return Prototypes(*(torch.cat(column) for column in zip(*parts, strict=True)))


def _of_channels(
    layer: StoredLayer, assignments: Tensor, rows: Tensor, part: slice, k: int
) -> tuple[Tensor, Tensor, Tensor]:
    units = unit_rows(layer.all_embeddings[rows[part].clamp(min=0)]).rows
    vectors, present = mean_directions(units, assignments[part], k)
    channel, cluster = torch.nonzero(present, as_tuple=True)
    return layer.sites.channels[part][channel], cluster, vectors[channel, cluster]
