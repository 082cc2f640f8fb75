"""Contact sheets of channels of high and of low PSI (Fig. 3 of the paper)."""

from __future__ import annotations

import io
from collections import Counter
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import torch
from PIL import Image
from torch import Tensor

from psi_engine.data import batches
from psi_engine.inputs import ImageInputs, reopen_images
from psi_engine.report.plots.examples import SHOWN, draw
from psi_engine.tables import CONCEPT
from psi_engine.validation.part import Context, Part, Result

_QUALITY = 92
# Of the JPEG files the pictures are kept as, so that figures can be drawn again without the data.

_SCORES = ("psi", "psi_low", "psi_high", "log_psi", "s_hat", "q_hat", "d_hat", "psi_p_adj")


def compute(context: Context) -> Result:
    """Choose channels and gather what a sheet of each shows.

    Returns
    -------
    Result
        ``channels``: which channels and why, with their scores. ``clusters``: theirs, largest
        first, with concepts and the commonest label. ``patches``: the strongest of each cluster,
        with site, box and the picture as the model saw it (JPEG, in the Parquet file only).
    """
    stored, count = context.stored, context.options.examples
    run = stored.run
    table = run.channels
    chosen: list[dict[str, Any]] = []
    notes: list[str] = []
    for layer in stored.layers:
        rows = table.filter(pc.field("layer") == layer).to_pylist()
        picked = choose(rows, count)
        chosen += picked
        if not picked:
            notes.append(f"{layer}: no channel is scorable")
        elif not any(row["why"].endswith("monosemantic") for row in picked):
            notes.append(f"{layer}: no further channel is called monosemantic")
    columns = ["layer", "channel", "kind", "rank", "image_id", "key", "x0", "y0", "x1", "y1"]
    sites = run.sites.select([*columns, "activation", "label", "cluster"])
    sites = sites.filter(pc.field("kind").cast("string") == "top").drop_columns("kind")
    clusters, patches = [], []
    for channel in chosen:
        where = (pc.field("layer") == channel["layer"]) & (
            pc.field("channel") == channel["channel"]
        )
        members = sites.filter(where).to_pylist()
        for row in _clusters(run.clusters.filter(where), members, stored.class_names):
            strongest = [site for site in members if site["cluster"] == row["cluster"]][:SHOWN]
            clusters.append(row)
            patches += [site | {"place": place} for place, site in enumerate(strongest)]
    pictures, unread = _pictures(reopen_images(run), patches, context)
    patches = [row | {"image": pictures.get(row["image_id"])} for row in patches]
    notes += [f"{key} cannot be read any more: {reason}" for key, reason in unread.items()]
    tables = {
        "channels": pa.Table.from_pylist(chosen, _CHANNELS),
        "clusters": pa.Table.from_pylist(clusters, _CLUSTERS),
        "patches": pa.Table.from_pylist(patches, _PATCHES),
    }
    said = [
        f"{row['layer']}:{row['channel']}, {row['why']}: PSI {row['psi']:.3g}, {row['verdict']}"
        for row in chosen
        if row["place"] == 1
    ]
    return Result(tables, tuple(notes), tuple(said))


def choose(rows: list[dict[str, Any]], count: int) -> list[dict[str, Any]]:
    """Channels of one layer to show, each once, and why.

    Parameters
    ----------
    rows : list of dict
        Of the channels' table.
    count : int
        Channels of the highest PSI, of the lowest, and of the lowest among those called
        monosemantic: the paper's counterpart to a channel of high PSI.

    Returns
    -------
    list of dict
        In this order; equal PSI by channel. ``why``, ``place`` within it from 1 on, ``of`` how
        many scored channels.
    """
    scored = sorted(
        (row for row in rows if row["log_psi"] is not None),
        key=lambda row: (-row["log_psi"], row["channel"]),
    )
    upward = sorted(scored, key=lambda row: (row["log_psi"], row["channel"]))
    quiet = [row for row in upward if row["verdict"] == "monosemantic"]
    chosen: dict[int, dict[str, Any]] = {}
    for why, group in (
        ("highest PSI", scored),
        ("lowest PSI", upward),
        ("lowest PSI of those called monosemantic", quiet),
    ):
        left = [row for row in group if row["channel"] not in chosen][:count]
        for place, row in enumerate(left, 1):
            told = {name: row[name] for name in ("layer", "channel", "verdict", "n_clusters")}
            told |= {name: row[name] for name in (*_SCORES, "n_patches", "clarity")}
            chosen[row["channel"]] = told | {"why": why, "place": place, "of": len(scored)}
    return list(chosen.values())


def _clusters(
    table: pa.Table, members: list[dict[str, Any]], names: tuple[str, ...] | None
) -> list[dict[str, Any]]:
    """Clusters of a channel, the largest first, each with the label most of its images have."""
    found = []
    columns = ["layer", "channel", "cluster", "size", "silhouette", "concepts"]
    for row in sorted(
        table.select(columns).to_pylist(), key=lambda row: (-row["size"], row["cluster"])
    ):
        labels = [
            site["label"]
            for site in members
            if site["cluster"] == row["cluster"] and site["label"] is not None
        ]
        label = share = None
        if labels:
            commonest, times = Counter(labels).most_common(1)[0]
            label = str(commonest) if names is None else names[commonest]
            share = times / row["size"]
        found.append(row | {"label": label, "label_share": share})
    return found


def _pictures(
    inputs: ImageInputs, patches: list[dict[str, Any]], context: Context
) -> tuple[dict[int, bytes], dict[str, str]]:
    """JPEG files of the patches' images by id, and why others cannot be had, by key."""
    wanted = torch.tensor(sorted({row["image_id"] for row in patches}), dtype=torch.int64)
    pictures: dict[int, bytes] = {}
    skipped: dict[int, str] = {}
    for batch in batches(
        inputs.source,
        inputs.model.preprocess,
        batch_size=context.stored.config.mine.batch_size,
        workers=context.stored.config.workers,
        indices=wanted,
        skipped=skipped,
    ):
        for image, view in zip(batch.image_ids.tolist(), batch.views, strict=True):
            pictures[image] = _jpeg(view)
        context.tell("reading images", len(pictures), len(wanted))
    return pictures, {inputs.source.keys[image]: why for image, why in skipped.items()}


def _jpeg(view: Tensor) -> bytes:
    """A picture as the model saw it, uint8 (3, S, S), as a JPEG file."""
    buffer = io.BytesIO()
    pixels = view.permute(1, 2, 0).contiguous().numpy()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=_QUALITY, subsampling=0)
    return buffer.getvalue()


_TEXT, _WHOLE, _REAL = pa.string(), pa.int64(), pa.float64()
_CHANNEL = {"layer": _TEXT, "channel": _WHOLE}
_CHANNELS = pa.schema(
    _CHANNEL
    | {"why": _TEXT, "place": _WHOLE, "of": _WHOLE}
    | {"verdict": _TEXT, "n_clusters": _WHOLE, "n_patches": _WHOLE}
    | dict.fromkeys((*_SCORES, "clarity"), _REAL)
)
_CLUSTERS = pa.schema(
    _CHANNEL
    | {"cluster": _WHOLE, "size": _WHOLE, "silhouette": _REAL}
    | {"label": _TEXT, "label_share": _REAL, "concepts": pa.list_(CONCEPT)}
)
_PATCHES = pa.schema(
    _CHANNEL
    | {"cluster": _WHOLE, "place": _WHOLE, "rank": _WHOLE, "image_id": _WHOLE, "key": _TEXT}
    | dict.fromkeys(("x0", "y0", "x1", "y1"), _WHOLE)
    | {"activation": _REAL, "label": _WHOLE, "image": pa.binary()}
)

PART = Part("examples", compute, draw, options=("examples",))
