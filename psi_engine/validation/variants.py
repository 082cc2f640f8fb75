"""Variants of a finished run: one setting of its mining or its crops changed, the rest reused.

A variant shares the run's model, images, encoder, channels and texts. Sites are mined anew only
where the variant changes mining, crops are embedded only where the run has not embedded that very
box of that image. Everything a variant makes lies in a folder of its own; a killed call
continues, a finished one is not repeated.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from psi_engine import artifacts
from psi_engine.config import MineConfig, RunConfig, Sites
from psi_engine.embedding import embed_once
from psi_engine.inputs import Inputs
from psi_engine.mining import NETWORK_FORM, mine
from psi_engine.ops.backend import resolve_device
from psi_engine.patches import collect_patches
from psi_engine.stored import MINED, StoredRun, stored_layers
from psi_engine.types import Boxes, LayerSites, PatchSet, Progress, ReceptiveField

STATE = "mining.partial.safetensors"
CHECKPOINT_IMAGES = 4096


@dataclass(frozen=True)
class Variant:
    """What is changed.

    name : of its folder. axis, condition : where its scores stand in the stability tables.
    mine : how sites are mined; None = the run's own sites. scale : side of the crops, in sides of
    the run's.
    """

    name: str
    axis: str
    condition: str
    mine: MineConfig | None = None
    scale: float = 1.0


SCALES = (0.75, 1.25)
DEEPER = 2
# Times the run's K that is mined.


def variants(config: RunConfig) -> tuple[list[Variant], list[str]]:
    """Every variant that can be had of a run, and notes on those that cannot.

    Twice the K, the other site policy, crops of three quarters and five quarters of the side.
    """
    mine, notes = config.mine, []
    found = []
    if (deeper := DEEPER * mine.top_k) <= mine.pool:
        found.append(Variant(f"top-k-{deeper}", "K", str(deeper), replace(mine, top_k=deeper)))
    else:
        notes.append(f"K = {deeper} is left out: the pool holds {mine.pool} patches")
    other: Sites = "all" if mine.sites == "per-image" else "per-image"
    found.append(Variant(f"sites-{other}", "sites", other, replace(mine, sites=other)))
    found += [Variant(f"patch-{scale:g}", "patch", f"× {scale:g}", scale=scale) for scale in SCALES]
    return found, notes


def make_variant(
    stored: StoredRun,
    inputs: Inputs,
    variant: Variant,
    folder: Path,
    *,
    device: str | None = None,
    progress: Progress | None = None,
) -> StoredRun:
    """Make a variant of a run, or what of it is not made yet.

    Parameters
    ----------
    stored : StoredRun
    inputs : Inputs
        Of the run, reopened.
    variant : Variant
    folder : Path
        Where its files go.
    device : str, optional
        None = where the run was made.

    Returns
    -------
    StoredRun
        With the run's channels, texts and settings, and the variant's sites and embeddings.

    Raises
    ------
    CorruptDataError
        When an image that was readable while mining no longer is.
    """
    where = inputs.device if device is None else resolve_device(device)
    mined: Mapping[str, LayerSites] = {name: layer.sites for name, layer in stored.layers.items()}
    if variant.mine is not None:
        mined = _mine(stored, inputs, variant.mine, folder, where, progress)
    seen = {
        name: scaled(layer.field, variant.scale, stored.image_size)
        for name, layer in stored.layers.items()
    }
    patches = collect_patches(mined, seen, stored.image_size)
    embeddings = _embed(stored, inputs, patches, folder, where, progress)
    config = stored.config
    if variant.mine is not None:
        config = replace(config, mine=variant.mine)
    return replace(
        stored,
        config=config,
        layers=stored_layers(mined, seen, patches, embeddings, stored.labels),
    )


def scaled(field: ReceptiveField, scale: float, image_size: int) -> ReceptiveField:
    """A receptive field with sides ``scale`` times as long, those beyond the image cut first."""
    if scale == 1.0:
        return field
    height, width = (min(side, image_size) * scale for side in field.size)
    return field._replace(size=(height, width))


def _mine(
    stored: StoredRun,
    inputs: Inputs,
    config: MineConfig,
    folder: Path,
    device: torch.device,
    progress: Progress | None,
) -> Mapping[str, LayerSites]:
    run_key = stored.run.manifest["stages"]["mine"]["key"]
    form = NETWORK_FORM[device.type]
    key = artifacts.fingerprint("variant", run_key, replace(config, batch_size=1), form)
    path, record = folder / MINED, folder / "mining.json"
    if record.is_file() and path.is_file() and record.read_text(encoding="utf-8") == key:
        return artifacts.read_mined(path)
    record.unlink(missing_ok=True)
    state_path, state = folder / STATE, None
    if state_path.is_file():
        state, notes = artifacts.read_tensors(state_path)
        state = state if notes.get("key") == key else None
    mined = mine(
        inputs.model,
        inputs.source,
        list(stored.layers),
        config,
        channels={name: layer.sites.channels for name, layer in stored.layers.items()},
        device=device,
        workers=stored.config.workers,
        progress=progress,
        skipped={},
        state=state,
        checkpoint=lambda saved: artifacts.write_tensors(state_path, saved, {"key": key}),
        checkpoint_every=CHECKPOINT_IMAGES,
    )
    artifacts.write_mined(path, mined)
    with artifacts.atomic(record) as temporary:
        temporary.write_text(key, encoding="utf-8")
    state_path.unlink(missing_ok=True)
    return mined


def _embed(
    stored: StoredRun,
    inputs: Inputs,
    patches: PatchSet,
    folder: Path,
    device: torch.device,
    progress: Progress | None,
) -> Tensor:
    """Embeddings of the variant's boxes: the run's own where it has them, float32 (n, dim)."""
    layer = next(iter(stored.layers.values()))
    known = torch.full((len(patches.boxes.image_ids),), -1)
    if device.type == inputs.device.type:  # another device rounds differently
        known = places_of(patches.boxes, layer.patches.boxes)
    missing = torch.nonzero(known < 0)[:, 0]
    embeddings = layer.all_embeddings[known.clamp(min=0)]
    if not len(missing):
        return embeddings
    boxes = Boxes(patches.boxes.image_ids[missing], patches.boxes.xyxy[missing])
    key = artifacts.fingerprint(
        "variant",
        inputs.encoder.fingerprint,
        stored.run.manifest["fingerprints"]["data"],
        artifacts.tensor_fingerprint(torch.cat([boxes.image_ids[:, None], boxes.xyxy], 1)),
        device.type,
    )
    path = embed_once(
        folder,
        key,
        inputs.source,
        inputs.model.preprocess,
        boxes,
        inputs.encoder.to(device),
        device=device,
        batch_size=stored.config.mine.batch_size,
        workers=stored.config.workers,
        progress=progress,
    )
    embeddings[missing] = torch.from_numpy(np.load(path))
    return embeddings


def places_of(wanted: Boxes, held: Boxes) -> Tensor:
    """Where each wanted box of an image stands among the held ones: int64 (n,), −1 = nowhere."""
    rows = torch.cat(
        [torch.cat([boxes.image_ids[:, None], boxes.xyxy], 1) for boxes in (held, wanted)]
    )
    _, which = rows.unique(dim=0, return_inverse=True)
    size = int(which.max()) + 1 if len(which) else 0
    place = torch.full((size,), -1)
    place[which[: len(held.image_ids)]] = torch.arange(len(held.image_ids))
    return place[which[len(held.image_ids) :]]
