"""How many clusters channels and random sets have (Fig. 5 of the paper)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from psi_engine.report.plots.k_hat import draw
from psi_engine.stored import StoredRun
from psi_engine.validation.null_channels import lack_of_images, null_channels
from psi_engine.validation.part import Context, Part, Result

K_MAX = (3, 5, 8)
"""Upper ends of the ranges of k that are tried beside the run's own."""

_NOTHING = {
    "text_embeddings": None,
    "concept_ids": None,
    "unrelated_text_embeddings": None,
    "unrelated_concept_ids": None,
}


def compute(context: Context) -> Result:
    """Count k̂ of real channels and of random sets, layer by layer, for several ranges of k.

    Returns
    -------
    Result
        ``counts``: one row per layer, range of k, kind (real | null) and k: ``channels`` and
        their ``share`` of the kind. ``ranges``: per layer, range and kind the mean and median k̂
        and ``at_k_max``, the share of channels at the range's upper end.
    """
    stored, options = context.stored, context.options
    counts: list[dict[str, Any]] = []
    summary: list[dict[str, Any]] = []
    notes: list[str] = []
    tried = k_ranges(stored)
    for number, layer in enumerate(stored.layers):
        sets = null_channels(stored.layers[layer], options.null_channels, options.seed)
        notes += sets.notes
        for place, (low, high) in enumerate(tried):
            # only the clusters are wanted: the nulls that cost nothing
            config = replace(
                stored.config.score,
                k_min=low, k_max=high, s_null="rotation-shared", replicates=2, subsamples=0,
            )  # fmt: skip
            for kind, given in (("real", {"labels": None}), ("null", sets.arguments)):
                found = stored.score(layer, config, **{**given, **_NOTHING, "labels": None})
                k = found.n_clusters.numpy()
                name = {"layer": layer, "k_min": low, "k_max": high, "kind": kind}
                counts += _counts(name, k)
                summary.append(name | _summary(k, high))
            done = number * len(tried) + place + 1
            context.tell("ranges of k", done, len(stored.layers) * len(tried))
    tables = {"counts": pa.Table.from_pylist(counts), "ranges": pa.Table.from_pylist(summary)}
    own = stored.config.score
    headline = [
        f"{row['layer']}: mean k̂ {row['mean']:.2f} of {row['channels']} {row['kind']} channels, "
        f"{row['at_k_max']:.0%} at k = {row['k_max']}"
        for row in summary
        if row["mean"] is not None and (row["k_min"], row["k_max"]) == (own.k_min, own.k_max)
    ]
    return Result(tables, tuple(notes), tuple(headline))


def k_ranges(stored: StoredRun) -> list[tuple[int, int]]:
    """Ranges of k to try: the run's own, and those to :data:`K_MAX` that the patches allow."""
    own = stored.config.score
    most = min(layer.rows.shape[1] for layer in stored.layers.values()) - 1
    others = {(own.k_min, k) for k in K_MAX if own.k_min < k <= most}
    return sorted({(own.k_min, own.k_max), *others})


def _counts(name: dict[str, Any], k: NDArray[np.int64]) -> list[dict[str, Any]]:
    scored = int((k > 0).sum())
    return [
        {
            **name,
            "k": value,
            "channels": int((k == value).sum()),
            "share": float((k == value).sum() / scored) if scored else None,
        }
        for value in range(name["k_min"], name["k_max"] + 1)
    ]


def _summary(k: NDArray[np.int64], high: int) -> dict[str, Any]:
    scored = k[k > 0]
    there = len(scored) > 0
    return {
        "channels": len(scored),
        "unscored": len(k) - len(scored),
        "mean": float(scored.mean()) if there else None,
        "median": float(np.median(scored)) if there else None,
        "at_k_max": float((scored == high).mean()) if there else None,
    }


PART = Part("k-hat", compute, draw, lack_of_images, ("null_channels", "seed"))
