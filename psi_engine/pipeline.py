"""The order of the stages: mine → patches → embed → score, each skipped when its key still holds.

This is the only file that knows all stages. Everything that can be refused is refused before
the first download and before any work, in the order options, device, model, weights, layers,
channels, data, encoder.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from psi_engine import artifacts
from psi_engine.baselines import measure_all
from psi_engine.config import MineConfig, RunConfig, ScoreConfig
from psi_engine.data import batches
from psi_engine.distributed import LOCK, World, join, only_job
from psi_engine.embedding import BOXES, EMBEDDINGS, PARTS, embed_boxes, write_boxes
from psi_engine.errors import InputError, RunFolderError
from psi_engine.found import Found, write_stages
from psi_engine.inputs import Inputs, check, embed_texts, run_folder
from psi_engine.mining import dead_channels
from psi_engine.mining_pass import PARTIAL, Work, mine_images, work_of
from psi_engine.ops.backend import memory_budget
from psi_engine.patches import collect_patches, receptive_field, site_boxes
from psi_engine.provenance import made_here, versions
from psi_engine.scores.describe import describe_clusters
from psi_engine.settings import write_run_settings
from psi_engine.shards import told_aside
from psi_engine.stored import (
    MINED,
    SCORE_INPUTS,
    field_of,
    stored_layers,
    write_score_inputs,
)
from psi_engine.tables import KINDS, SCORED, channel_table, cluster_table, null_table, site_table
from psi_engine.types import LayerSites, Mined, PatchSet, Progress, ReceptiveField, Scores


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
    artifacts.refuse_other_run(run_folder(config), {"model": config.model})
    with join(config.device) as world:
        return _run(config, progress if world.main else None, world)


def run_from(
    config: RunConfig, inputs: Inputs, found: Found, *, progress: Progress | None = None
) -> artifacts.Run:
    """Finish a run whose first stages another tool did.

    Parameters
    ----------
    config : RunConfig
    inputs : Inputs
        What the settings name, with stand-ins where the tool's files come without it.
    found : Found

    Raises
    ------
    InputError
        The process is a rank of a larger job.
    RunFolderError
        The folder holds another run, or sites of other files.
    """
    started = time.perf_counter()
    with join(config.device) as world:
        if world.size > 1:
            raise InputError("files are imported by one process", got=f"{world.size} ranks")
        out = run_folder(config)
        with only_job(out / LOCK, world):
            folder = artifacts.RunFolder(out, inputs.identity | found.identity, world)
            keys = _keys(config, inputs, work_of(config, inputs).key, _vocabulary(inputs))
            write_stages(folder, keys, inputs.model.preprocess.image_size, found)
            return _stages(config, inputs, progress, world, started)


def _run(config: RunConfig, progress: Progress | None, world: World) -> artifacts.Run:
    started = time.perf_counter()
    inputs = _inputs(config, progress, world)
    with only_job(run_folder(config) / LOCK, world):
        return _stages(config, inputs, progress, world, started)


def _stages(
    config: RunConfig, inputs: Inputs, progress: Progress | None, world: World, started: float
) -> artifacts.Run:
    out = run_folder(config)
    folder = artifacts.RunFolder(out, inputs.identity, world)
    world.require_shared(out)
    work = work_of(config, inputs)
    if "sites" in folder.manifest["identity"] and not folder.is_done("mine", work.key):
        raise RunFolderError(
            f"{out} holds sites that another tool found",
            got="settings that would mine them anew",
            expected="the same model, data, channels and --top-k as at the import",
            fix="give another --out to mine with psi-engine",
        )
    vocabulary = _vocabulary(inputs)
    keys = _keys(config, inputs, work.key, vocabulary)
    for stage, key in keys.items():  # of preprocess, vocabulary, labels … too
        world.require_same(f"inputs of the stage {stage}", key)
    folder.describe(
        keys,
        config=asdict(config),
        versions=versions(),
        device=_device_name(inputs.device),
        backend=inputs.backend,
        ranks=world.size,
        threads=torch.get_num_threads(),
        fingerprints={**inputs.fingerprints, "vocabulary": vocabulary},
        image_size=inputs.model.preprocess.image_size,
        model={"name": inputs.model.name, "weights": inputs.model.weights},
        layers={"depth": inputs.chosen.depths, "left_out": inputs.chosen.left_out},
        encoder={"name": inputs.encoder.name, "text": inputs.encoder.text},
        preparation_seconds=round(time.perf_counter() - started, 3),
    )
    if world.main and "sites" not in folder.manifest["identity"]:
        write_run_settings(out, config)  # sites of another tool are repeated by no settings
    mined = _mine(folder, work, config, inputs, progress, world)
    patches, fields = _patches(folder, keys["patches"], config, inputs, mined, world)
    _embed(folder, keys["embed"], config, inputs, patches, progress, world)
    _score(folder, keys["score"], config, inputs, mined, patches, fields, progress, world)
    world.wait()
    return artifacts.open_run(out)


def _vocabulary(inputs: Inputs) -> str:
    """Fingerprint of the concepts that clusters are named with."""
    prompts = inputs.prompts
    texts = None if prompts is None else prompts.texts
    return artifacts.fingerprint(inputs.vocabulary, inputs.concepts, texts)


def _keys(config: RunConfig, inputs: Inputs, mine: str, vocabulary: str) -> dict[str, str]:
    """The stages' keys in their order, each made of the one before."""
    patches = artifacts.fingerprint("patches", mine, config.patches)
    embed = artifacts.fingerprint("embed", patches, inputs.encoder.fingerprint, inputs.device.type)
    score = artifacts.fingerprint(
        "score",
        SCORE_INPUTS,
        SCORED,  # a run of an earlier version, which lacks one, is scored again
        embed,
        replace(config.score, memory=None),
        vocabulary,
        inputs.backend,
        None
        if inputs.source.labels is None
        else artifacts.tensor_fingerprint(inputs.source.labels),
    )
    return {"mine": mine, "patches": patches, "embed": embed, "score": score}


def _inputs(config: RunConfig, progress: Progress | None, world: World) -> Inputs:
    """Find and check the inputs, the same on every rank, each on its own device."""
    if world.size == 1:
        return check(config, progress)
    for name, value in _settings_of_all(config).items():
        world.require_same(f"settings: {name}", value)
    placed = replace(config, device=str(world.device))
    inputs = world.in_turn(lambda: check(placed, progress))
    for name, value in inputs.fingerprints.items():
        world.require_same(name, value)
    for name, value in made_here(inputs.device).items():
        world.require_same(name, value)
    return inputs


def _settings_of_all(config: RunConfig) -> dict[str, Any]:
    """The settings that ranks must have in common, by name."""
    settings = asdict(config)
    for name in ("out", "data", "device", "workers"):  # folder, content and device are compared
        del settings[name]
    nested = {stage: settings.pop(stage) for stage in ("mine", "patches", "score")}
    inner = {f"{stage}.{name}": x for stage, part in nested.items() for name, x in part.items()}
    return settings | inner


def _mine(
    folder: artifacts.RunFolder,
    work: Work,
    config: RunConfig,
    inputs: Inputs,
    progress: Progress | None,
    world: World,
) -> Mined:
    path = folder.path / MINED
    if folder.is_done("mine", work.key):
        return artifacts.read_mined(path)
    started = time.perf_counter()
    folder.begin("mine", work.key)
    found = mine_images(folder.path, work, config, inputs, progress, world)
    facts: dict[str, Any] = {}
    if found is not None:
        mined, skipped, facts["notes"] = found
        artifacts.write_mined(path, mined)
        facts["images"] = mined[inputs.layers[0]].images
        facts["set_aside"] = told_aside(folder.path / PARTIAL)
        facts["skipped"] = [
            {"image_id": i, "key": inputs.source.keys[i], "reason": reason}
            for i, reason in sorted(skipped.items())
        ]
    folder.finish("mine", [MINED], time.perf_counter() - started, **facts)
    folder.discard(PARTIAL)
    world.wait()
    return artifacts.read_mined(path)


def _patches(
    folder: artifacts.RunFolder,
    key: str,
    config: RunConfig,
    inputs: Inputs,
    mined: Mined,
    world: World,
) -> tuple[PatchSet, dict[str, ReceptiveField]]:
    side = inputs.model.preprocess.image_size
    if folder.is_done("patches", key):
        facts = folder.fact("patches", "fields")
        fields = {name: field_of(facts[name]) for name in inputs.layers}
    else:
        started = time.perf_counter()
        folder.begin("patches", key)
        fields = world.from_main(lambda: _fields(config, inputs, side, mined))
        facts = {layer: field._asdict() for layer, field in fields.items()}
        folder.finish("patches", [], time.perf_counter() - started, fields=facts)
    return collect_patches(mined, fields, side), fields


def _fields(
    config: RunConfig, inputs: Inputs, side: int, mined: Mined
) -> dict[str, ReceptiveField]:
    # Sites of another tool may have no place in the layer's map: their shape says so.
    shapes = {layer: mined[layer].shape for layer in inputs.layers}
    kind, probes = config.patches.patch, None
    if kind == "effective":
        if any(shape.kind != "flat" for shape in shapes.values()):
            probes = _probe_images(inputs, config.patches.probe_images)
        else:
            kind = "theoretical"  # the whole image either way, and nothing to measure it on
    return {
        layer: receptive_field(
            inputs.model.module,
            layer,
            side,
            kind,
            images=probes,
            energy=config.patches.energy,
            shape=shapes[layer],
        )
        for layer in inputs.layers
    }


def _probe_images(inputs: Inputs, count: int) -> Tensor:
    """Return the first readable images of the source, normalised, float32 (n, 3, S, S)."""
    preprocess = inputs.model.preprocess
    loader = batches(inputs.source, preprocess, batch_size=count, skipped={})
    return preprocess.normalise(next(iter(loader)).views.to(inputs.device))


def _embed(
    folder: artifacts.RunFolder,
    key: str,
    config: RunConfig,
    inputs: Inputs,
    patches: PatchSet,
    progress: Progress | None,
    world: World,
) -> None:
    if folder.is_done("embed", key):
        return
    started = time.perf_counter()
    folder.begin("embed", key)
    notes: list[str] = []
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
        world=world,
        notes=notes,
    )
    if world.main:
        write_boxes(folder.path, patches.boxes)
    folder.finish(
        "embed",
        [EMBEDDINGS, BOXES],
        time.perf_counter() - started,
        crops=len(patches.boxes.image_ids),
        dim=inputs.encoder.dim,
        notes=notes,
    )
    folder.discard(PARTS)


def _score(
    folder: artifacts.RunFolder,
    key: str,
    config: RunConfig,
    inputs: Inputs,
    mined: Mined,
    patches: PatchSet,
    fields: Mapping[str, ReceptiveField],
    progress: Progress | None,
    world: World,
) -> None:
    if folder.is_done("score", key):
        return
    started = time.perf_counter()
    folder.begin("score", key)
    texts = world.from_main(lambda: embed_texts(inputs))
    source = inputs.source
    if world.main:
        write_score_inputs(
            folder.path / SCORE_INPUTS, source.labels, texts, source.class_names, inputs.concepts
        )
    embeddings = torch.from_numpy(np.load(folder.path / EMBEDDINGS, mmap_mode="c"))
    tables: dict[str, list[pa.Table]] = {name: [] for name in SCORED}
    notes: dict[str, list[str]] = {}
    layers = stored_layers(mined, fields, patches, embeddings, source.labels)
    for number, (layer, stored) in enumerate(layers.items()):
        sites, mask, z = stored.sites, stored.mask, stored.embeddings
        scores = stored.score(
            texts,
            _settings(config, inputs, world),
            device=inputs.device,
            backend=config.backend,
            progress=_for_layer(progress, layer, number, len(layers)),
            embeddings=z,
            mask=mask,
            world=world,
        )
        if not world.main:
            continue
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
        tables["sites"].append(site_table(sites, boxes, scores, source.keys, source.labels))
        tables["nulls"].append(null_table(layer, sites.channels, scores))
    for name, parts in tables.items() if world.main else ():
        artifacts.write_table(folder.path / f"{name}.parquet", pa.concat_tables(parts))
    folder.finish(
        "score",
        [*(f"{name}.parquet" for name in tables), SCORE_INPUTS],
        time.perf_counter() - started,
        notes=notes,
        vocabulary=inputs.vocabulary,
        channels=sum(len(layer.channels) for layer in mined.values()),
    )


def _settings(config: RunConfig, inputs: Inputs, world: World) -> ScoreConfig:
    """The score's settings, with this rank's part of the memory that ranks of a machine share."""
    if world.local_size == 1 or inputs.device.type != "cpu" or config.score.memory is not None:
        return config.score
    return replace(config.score, memory=memory_budget(inputs.device) // world.local_size)


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
