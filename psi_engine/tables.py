"""From the stages' objects to the Arrow tables of the run folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from psi_engine.types import ActivationStats, Clusters, LayerSites, Scores, SiteSet

KINDS = ("top", "bottom", "random")
"""The site sets of ``sites.parquet``, in the order they are written."""

SCORED = ("channels", "clusters", "sites", "nulls")
"""The tables that scoring writes, ``NAME.parquet`` each."""

_KIND = pa.dictionary(pa.int8(), pa.string())
CONCEPT = pa.struct([("concept", pa.string()), ("similarity", pa.float64())])


def channel_table(
    layer: str,
    channels: Tensor,
    scores: Scores,
    stats: ActivationStats,
    baselines: Mapping[str, Tensor],
) -> pa.Table:
    """One row per channel of a layer: scores, activation range and the peers' measures.

    Parameters
    ----------
    channels : Tensor, int64 (channels,)
        Indices of the rows in the layer.
    stats : ActivationStats
        Of the same channels.
    baselines : Mapping[str, Tensor]
        float64 (channels,) each, by column name.
    """
    table = channel_scores(layer, channels, scores)
    activation = {
        "activation_min": stats.minimum,
        "activation_max": stats.maximum,
        "activation_mean": stats.mean,
        "activation_std": stats.variance.sqrt(),
        "sparsity": stats.sparsity,
        "nonfinite": stats.nonfinite,
    }
    for name, values in {**activation, **baselines}.items():
        table = table.append_column(name, _finite(values.cpu()))
    return table


def channel_scores(layer: str, channels: Tensor, scores: Scores) -> pa.Table:
    """One row per channel with nothing but its scores."""
    return _prefix(scores.to_arrow(), layer, channels)


def null_table(layer: str, channels: Tensor, scores: Scores) -> pa.Table:
    """What the scored channels were compared with: one row per channel and component.

    Parameters
    ----------
    channels : Tensor, int64 (channels,)
        Indices of the rows in the layer.

    Returns
    -------
    pa.Table
        ``component`` (s, q, d), ``null`` its name, ``replicates`` draws of it, ``quantiles`` of
        those draws at the probabilities 0, 1/40 … 1, ascending. Channels that were not scored
        have no row.
    """
    parts = []
    for component in scores.available:
        values = getattr(scores, f"{component}_null_quantiles")
        rows = torch.nonzero(~values[:, 0].isnan())[:, 0]
        flat = pa.array(values[rows].flatten().numpy())
        offsets = np.arange(len(rows) + 1, dtype=np.int32) * values.shape[1]
        drawn = scores.nulls[component]
        part = {
            "component": pa.array([component] * len(rows), pa.string()),
            "null": pa.array([drawn.null] * len(rows), pa.string()),
            "replicates": pa.array([drawn.replicates] * len(rows), pa.int32()),
            "quantiles": pa.ListArray.from_arrays(offsets, flat),
        }
        parts.append(_prefix(pa.table(part), layer, channels[rows]))
    return pa.concat_tables(parts).sort_by("channel")  # of a channel s, q, d: the sort is stable


def cluster_table(
    layer: str,
    channels: Tensor,
    clusters: Clusters,
    concepts: Sequence[str] | None,
    sites: SiteSet,
) -> pa.Table:
    """One row per cluster: size, silhouette, the five best concepts, the medoid's site.

    Parameters
    ----------
    channels : Tensor, int64 (channels,)
        Indices in the layer of the scored rows.
    concepts : sequence of str, optional
        Names of the concept ids; None without text.
    sites : SiteSet
        The scored sites, to place the medoid.
    """
    row, medoid = clusters.channel, clusters.medoid
    table = cluster_scores(layer, channels, clusters, concepts)
    for name, values in (("image_id", sites.image_ids), ("u", sites.u), ("v", sites.v)):
        table = table.append_column(f"medoid_{name}", pa.array(values[row, medoid].numpy()))
    return table


def cluster_scores(
    layer: str, channels: Tensor, clusters: Clusters, concepts: Sequence[str] | None
) -> pa.Table:
    """One row per cluster; ``medoid_rank`` is the medoid's place among the channel's patches."""
    table = pa.table(
        {
            "cluster": clusters.cluster.numpy(),
            "size": clusters.size.numpy(),
            "silhouette": clusters.silhouette.numpy(),
            "concepts": _concept_lists(clusters, concepts),
            "medoid_rank": clusters.medoid.numpy(),
        }
    )
    return _prefix(table, layer, channels[clusters.channel])


def site_table(
    mined: LayerSites,
    boxes: Mapping[str, Tensor],
    scores: Scores,
    keys: Sequence[str],
    labels: Tensor | None,
) -> pa.Table:
    """One row per mined site of a layer.

    Parameters
    ----------
    boxes : Mapping[str, Tensor]
        By kind (``top``, ``bottom``, ``random``): int64 (channels, k, 4), x0 y0 x1 y1.
    scores : Scores
        Of the top sites: their clusters and silhouettes.
    keys : sequence of str
        Path or key of every image of the source.
    labels : Tensor, int64 (images,), optional
        −1 = unknown.
    """
    parts = []
    for kind in KINDS:
        sites: SiteSet = getattr(mined, kind)
        row, rank = torch.nonzero(sites.image_ids >= 0, as_tuple=True)
        image = sites.image_ids[row, rank]
        box = boxes[kind][row, rank].numpy()
        label = torch.full_like(image, -1) if labels is None else labels[image]
        cluster = torch.full_like(image, -1)
        silhouette = torch.full_like(image, torch.nan, dtype=torch.float32)
        if kind == "top":
            inside = rank < scores.assignments.shape[1]
            at = row[inside], rank[inside]
            cluster[inside] = scores.assignments[at]
            silhouette[inside] = scores.silhouettes[at].to(torch.float32)
        part = pa.table(
            {
                "kind": pa.array([kind] * len(image), _KIND),
                "rank": rank.numpy().astype(np.int32),
                "image_id": image.numpy(),
                "key": pa.array([keys[i] for i in image.tolist()], pa.string()),
                "u": sites.u[row, rank].numpy(),
                "v": sites.v[row, rank].numpy(),
                **{
                    name: box[:, i].astype(np.int32)
                    for i, name in enumerate(("x0", "y0", "x1", "y1"))
                },
                "activation": sites.values[row, rank].numpy(),
                "label": _blank(label),
                "cluster": _blank(cluster),
                "silhouette": _finite(silhouette),
            }
        )
        parts.append(_prefix(part, mined.layer, mined.channels[row]))
    return pa.concat_tables(parts)


def patch_table(layer: str, scores: Scores, labels: Tensor | None) -> pa.Table:
    """One row per patch of channels that came without images: rank, label, cluster, silhouette.

    Parameters
    ----------
    labels : Tensor, int64 (channels, patches), optional
        −1 = unknown.
    """
    assignments = scores.assignments
    channels, patches = assignments.shape
    blank = torch.full_like(assignments, -1)
    table = pa.table(
        {
            "kind": pa.array(["top"] * assignments.numel(), _KIND),
            "rank": np.tile(np.arange(patches, dtype=np.int32), channels),
            "key": pa.nulls(assignments.numel(), pa.string()),
            "activation": pa.nulls(assignments.numel(), pa.float32()),
            "label": _blank((blank if labels is None else labels).long().flatten()),
            "cluster": _blank(assignments.flatten()),
            "silhouette": _finite(scores.silhouettes.flatten().to(torch.float32)),
        }
    )
    return _prefix(table, layer, torch.arange(channels).repeat_interleave(patches))


def _blank(values: Tensor) -> pa.Array:
    data = values.numpy()
    return pa.array(data, mask=data < 0)


def _finite(values: Tensor) -> pa.Array:
    data = values.numpy()
    return pa.array(data, mask=~np.isfinite(data))


def _prefix(table: pa.Table, layer: str, channels: Tensor) -> pa.Table:
    names = pa.DictionaryArray.from_arrays(np.zeros(len(table), np.int16), [layer])
    table = table.add_column(0, "layer", names.cast(pa.string()))
    return table.add_column(1, "channel", pa.array(channels.numpy()))


def _concept_lists(clusters: Clusters, names: Sequence[str] | None) -> pa.Array:
    if clusters.concepts is None or clusters.similarities is None or names is None:
        return pa.nulls(len(clusters.channel), pa.list_(CONCEPT))
    rows = zip(clusters.concepts.tolist(), clusters.similarities.tolist(), strict=True)
    return pa.array(
        [
            [
                {"concept": names[i], "similarity": x}
                for i, x in zip(ids, values, strict=True)
                if i >= 0
            ]
            for ids, values in rows
        ],
        pa.list_(CONCEPT),
    )
