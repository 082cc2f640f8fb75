"""The order of the stages: mine → patches → embed → score, each skipped when its key still holds.

This is the only file that knows all stages. Everything that can be refused is refused before
the first download and before any work, in the order options, device, model, weights, layers,
channels, data, encoder.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, replace

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from psi_engine import artifacts
from psi_engine.baselines import measure_all
from psi_engine.config import MineConfig, RunConfig
from psi_engine.data import batches
from psi_engine.embedding import EMBEDDINGS, POSITION, embed_boxes
from psi_engine.inputs import Inputs, check, embed_texts, run_folder
from psi_engine.mining import dead_channels, mine
from psi_engine.patches import collect_patches, receptive_field, site_boxes
from psi_engine.scores.describe import describe_clusters
from psi_engine.stored import (
    MINED,
    SCORE_INPUTS,
    field_of,
    stored_layers,
    write_score_inputs,
)
from psi_engine.tables import KINDS, channel_table, cluster_table, site_table
from psi_engine.types import LayerSites, Mined, PatchSet, Progress, ReceptiveField, Scores

MINING_STATE = "mining.partial.safetensors"
BOXES = "embeddings/boxes.parquet"
CHECKPOINT_IMAGES = 4096
"""Images between two saved states of a running mining stage."""


def run(config: RunConfig, *, progress: Progress | None = None) -> artifacts.Run:
    """Score every channel of the named layers and write the run folder.

    Parameters
    ----------
    config : RunConfig
    progress : callable, optional
        ``progress(what, done, total)`` from every long loop.

    Returns
    -------
    Run
        The finished run folder, opened.

    Raises
    ------
    InputError
        For anything wrong with the options, the device, the model, its weights, the layers, the
        channels, the data or the encoder, before any work.
    """
    started = time.perf_counter()
    inputs = check(config, progress)
    out = run_folder(config)
    folder = artifacts.RunFolder(out, inputs.identity)
    folder.describe(
        config=asdict(config),
        versions=artifacts.versions(),
        device=_device_name(inputs.device),
        backend=inputs.backend,
        threads=torch.get_num_threads(),
        fingerprints=inputs.fingerprints,
        image_size=inputs.model.preprocess.image_size,
        model={"name": inputs.model.name, "weights": inputs.model.weights},
        encoder={"name": inputs.encoder.name, "text": inputs.encoder.text},
        preparation_seconds=round(time.perf_counter() - started, 3),
    )
    mined, mine_key = _mine(folder, config, inputs, progress)
    patches, fields, patch_key = _patches(folder, config, inputs, mined, mine_key)
    embedding_key = _embed(folder, config, inputs, patches, patch_key, progress)
    _score(folder, config, inputs, mined, patches, fields, embedding_key, progress)
    return artifacts.open_run(out)


def _mine(
    folder: artifacts.RunFolder, config: RunConfig, inputs: Inputs, progress: Progress | None
) -> tuple[Mined, str]:
    key = artifacts.fingerprint(
        "mine",
        inputs.identity,
        {layer: inputs.channels[layer] for layer in inputs.layers},
        inputs.model.preprocess,
        replace(config.mine, batch_size=1),
        inputs.device.type,
    )
    path, state_path = folder.path / MINED, folder.path / MINING_STATE
    if folder.is_done("mine", key):
        return artifacts.read_mined(path), key
    started = time.perf_counter()
    state = None
    if state_path.exists():
        state, notes = artifacts.read_tensors(state_path)
        if notes.get("key") != key:
            state = None
    folder.begin("mine", key)
    skipped: dict[int, str] = {}
    mined = mine(
        inputs.model,
        inputs.source,
        inputs.layers,
        config.mine,
        channels=inputs.channels,
        device=inputs.device,
        workers=config.workers,
        progress=progress,
        state=state,
        checkpoint=lambda saved: artifacts.write_tensors(state_path, saved, {"key": key}),
        checkpoint_every=CHECKPOINT_IMAGES,
        skipped=skipped,
    )
    artifacts.write_mined(path, mined)
    folder.finish(
        "mine",
        [MINED],
        time.perf_counter() - started,
        images=mined[inputs.layers[0]].images,
        skipped=[
            {"image_id": i, "key": inputs.source.keys[i], "reason": reason}
            for i, reason in sorted(skipped.items())
        ],
    )
    folder.discard(MINING_STATE)
    return mined, key


def _patches(
    folder: artifacts.RunFolder, config: RunConfig, inputs: Inputs, mined: Mined, mine_key: str
) -> tuple[PatchSet, dict[str, ReceptiveField], str]:
    key = artifacts.fingerprint("patches", mine_key, config.patches)
    side = inputs.model.preprocess.image_size
    if folder.is_done("patches", key):
        facts = folder.fact("patches", "fields")
        fields = {name: field_of(facts[name]) for name in inputs.layers}
    else:
        started = time.perf_counter()
        folder.begin("patches", key)
        probes = None
        if config.patches.patch == "effective":
            probes = _probe_images(inputs, config.patches.probe_images)
        fields = {
            layer: receptive_field(
                inputs.model.module,
                layer,
                side,
                config.patches.patch,
                images=probes,
                energy=config.patches.energy,
                shape=inputs.shapes[layer],
            )
            for layer in inputs.layers
        }
        facts = {layer: field._asdict() for layer, field in fields.items()}
        folder.finish("patches", [], time.perf_counter() - started, fields=facts)
    return collect_patches(mined, fields, side), fields, key


def _probe_images(inputs: Inputs, count: int) -> Tensor:
    """Return the first readable images of the source, normalised, float32 (n, 3, S, S)."""
    preprocess = inputs.model.preprocess
    loader = batches(inputs.source, preprocess, batch_size=count, skipped={})
    return preprocess.normalise(next(iter(loader)).views.to(inputs.device))


def _embed(
    folder: artifacts.RunFolder,
    config: RunConfig,
    inputs: Inputs,
    patches: PatchSet,
    patch_key: str,
    progress: Progress | None,
) -> str:
    key = artifacts.fingerprint("embed", patch_key, inputs.encoder.fingerprint, inputs.device.type)
    if folder.is_done("embed", key):
        return key
    started = time.perf_counter()
    folder.begin("embed", key)
    embed_boxes(
        folder.path,
        key,
        inputs.source,
        inputs.model.preprocess,
        patches.boxes,
        inputs.encoder,
        device=inputs.device,
        batch_size=config.mine.batch_size,
        workers=config.workers,
        progress=progress,
    )
    corners = {
        name: patches.boxes.xyxy[:, i].numpy() for i, name in enumerate(("x0", "y0", "x1", "y1"))
    }
    index = pa.table({"image_id": patches.boxes.image_ids.numpy(), **corners})
    artifacts.write_table(folder.path / BOXES, index)
    folder.finish(
        "embed",
        [EMBEDDINGS, BOXES],
        time.perf_counter() - started,
        crops=len(patches.boxes.image_ids),
        dim=inputs.encoder.dim,
    )
    folder.discard(POSITION)
    return key


def _score(
    folder: artifacts.RunFolder,
    config: RunConfig,
    inputs: Inputs,
    mined: Mined,
    patches: PatchSet,
    fields: Mapping[str, ReceptiveField],
    embedding_key: str,
    progress: Progress | None,
) -> None:
    prompts = inputs.prompts
    vocabulary = artifacts.fingerprint(
        inputs.vocabulary, inputs.concepts, None if prompts is None else prompts.texts
    )
    key = artifacts.fingerprint(
        "score",
        SCORE_INPUTS,
        embedding_key,
        replace(config.score, memory=None),
        vocabulary,
        inputs.backend,
    )
    folder.manifest["fingerprints"]["vocabulary"] = vocabulary
    if folder.is_done("score", key):
        folder.save()
        return
    started = time.perf_counter()
    folder.begin("score", key)
    texts = embed_texts(inputs)
    source = inputs.source
    write_score_inputs(
        folder.path / SCORE_INPUTS, source.labels, texts, source.class_names, inputs.concepts
    )
    embeddings = torch.from_numpy(np.load(folder.path / EMBEDDINGS, mmap_mode="c"))
    tables: dict[str, list[pa.Table]] = {"channels": [], "clusters": [], "sites": []}
    notes: dict[str, list[str]] = {}
    layers = stored_layers(mined, fields, patches, embeddings, source.labels)
    for number, (layer, stored) in enumerate(layers.items()):
        sites, mask, z = stored.sites, stored.mask, stored.embeddings
        scores = stored.score(
            texts,
            config.score,
            device=inputs.device,
            backend=config.backend,
            progress=_for_layer(progress, layer, number, len(layers)),
            embeddings=z,
            mask=mask,
        )
        scores = _explain(scores, sites, config.mine)
        clusters = describe_clusters(z, scores, texts.embeddings, texts.concept_ids)
        peers = measure_all(z, sites.unit_range[:, : z.shape[1]], mask.all(1))
        notes[layer] = list(scores.notes)
        side = inputs.model.preprocess.image_size
        boxes = {
            kind: site_boxes(getattr(sites, kind).u, getattr(sites, kind).v, fields[layer], side)
            for kind in KINDS
        }
        tables["channels"].append(channel_table(layer, sites.channels, scores, sites.stats, peers))
        tables["clusters"].append(
            cluster_table(layer, sites.channels, clusters, inputs.concepts, sites.top)
        )
        tables["sites"].append(
            site_table(sites, boxes, scores.assignments, source.keys, source.labels)
        )
    for name, parts in tables.items():
        artifacts.write_table(folder.path / f"{name}.parquet", pa.concat_tables(parts))
    folder.finish(
        "score",
        [*(f"{name}.parquet" for name in tables), SCORE_INPUTS],
        time.perf_counter() - started,
        notes=notes,
        vocabulary=inputs.vocabulary,
        channels=sum(len(layer.channels) for layer in mined.values()),
    )


def _for_layer(progress: Progress | None, layer: str, number: int, layers: int) -> Progress | None:
    """Name the layer in the scorer's progress."""
    if progress is None:
        return None
    prefix = layer if layers == 1 else f"{layer} ({number + 1}/{layers})"
    return lambda what, done, total: progress(f"scoring {prefix}: {what}", done, total)


def _explain(scores: Scores, sites: LayerSites, config: MineConfig) -> Scores:
    """Say why dead channels are dead and what the mining means for the scores."""
    top_k = config.top_k
    dead = dead_channels(sites.stats).tolist()
    lowest, count = sites.stats.minimum.tolist(), scores.n_patches.tolist()
    status, reason = list(scores.status), list(scores.reason)
    for row in range(len(status)):
        if dead[row]:
            reason[row] = f"dead channel: {lowest[row]:g} at every site of {sites.images} images"
        elif status[row] == "ok" and count[row] < top_k:
            status[row], reason[row] = "short", f"scored on {count[row]} of {top_k} patches"
    notes = list(scores.notes)
    short = [n for n, word in zip(count, status, strict=True) if word == "short"]
    if short:
        notes.append(f"{len(short)} channels are short: at most {max(short)} of {top_k} patches")
    if config.sites == "all":
        notes.append(
            "sites = all: several patches of one image raise S; the pool takes one an image first"
        )
    return replace(scores, status=tuple(status), reason=tuple(reason), notes=tuple(notes))


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
