"""A finished run under another encoder: the same crops, embedded, named and scored again."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray
from torch import Tensor

from psi_engine.artifacts import fingerprint
from psi_engine.embedding import embed_once
from psi_engine.encoders import load_encoder
from psi_engine.errors import InputError
from psi_engine.inputs import Texts, choose_vocabulary, embed_texts, reopen
from psi_engine.ops.backend import resolve_device
from psi_engine.scores.describe import describe_clusters
from psi_engine.stored import StoredLayer, StoredRun
from psi_engine.tables import channel_scores, cluster_scores
from psi_engine.types import Progress

OF_DEMO = {"psi_engine.demo:encoder": "psi_engine.demo:second_encoder"}
"""The second encoder of a run whose own one is known to have a sister."""


@dataclass(frozen=True)
class Judgement:
    """A layer's channels under one encoder.

    channels, clusters : as in the run folder's tables of these names, channel by channel.
    assignments : int64 (channels, patches), −1 = none. notes : of the scorer.
    """

    channels: pa.Table
    clusters: pa.Table
    assignments: NDArray[np.int64]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Sister:
    """The second encoder, and what it makes of the run's crops and of the words."""

    name: str
    embeddings: Tensor  # float32 (crops, dim), unit rows, in the order of the run's own
    texts: Texts
    concepts: tuple[str, ...] | None
    vocabulary: str


def embed_again(
    stored: StoredRun,
    spec: str,
    weights: str | None,
    folder: Path,
    *,
    device: str | None = None,
    progress: Progress | None = None,
) -> Sister:
    """Embed the crops and the vocabulary of a run with a second encoder.

    Parameters
    ----------
    stored : StoredRun
    spec, weights : str
        As for :func:`psi_engine.encoders.load_encoder`.
    folder : Path
        Embeddings go to a folder in it named after the encoder's fingerprint. A killed call
        continues, a finished one is not repeated.
    device : str, optional
        None = where the run was made.

    Raises
    ------
    RunFolderError
        Images, model or encoder of the run are not what they were.
    InputError
        The second encoder is the first.
    EncoderError
        It cannot be loaded.
    """
    inputs = reopen(stored.run)
    where = inputs.device if device is None else resolve_device(device)
    encoder = load_encoder(spec, weights, where)
    if encoder.fingerprint == inputs.encoder.fingerprint:
        raise InputError(
            "the second encoder is the first", got=spec, fix="give another --second-encoder"
        )
    layer = next(iter(stored.layers.values()))
    key = fingerprint(
        "second encoder",
        stored.run.manifest["stages"]["patches"]["key"],
        encoder.fingerprint,
        where.type,
    )
    path = embed_once(
        folder / encoder.fingerprint[:16],
        key,
        inputs.source,
        inputs.model.preprocess,
        layer.patches.boxes,
        encoder,
        device=where,
        batch_size=stored.config.mine.batch_size,
        workers=stored.config.workers,
        progress=progress,
    )
    config = replace(
        stored.config,
        encoder=spec,
        encoder_weights=weights,
        concepts=stored.config.concepts if encoder.text == "encoder" else None,
    )
    prompts, bank = choose_vocabulary(config, encoder, inputs.source)
    named = replace(inputs, encoder=encoder, prompts=prompts, bank=bank)
    return Sister(
        encoder.name,
        torch.from_numpy(np.load(path, mmap_mode="c")),
        _on_cpu(embed_texts(named)),
        named.concepts,
        named.vocabulary,
    )


def _on_cpu(texts: Texts) -> Texts:
    held = {name: getattr(texts, name) for name in (f.name for f in fields(Texts))}
    return Texts(**{name: None if x is None else x.cpu() for name, x in held.items()})


def judge_again(
    stored: StoredRun, layer: StoredLayer, sister: Sister, progress: Progress | None = None
) -> Judgement:
    """Score a layer as the run did, with the second encoder's embeddings and words.

    The run's settings hold, but for the intervals of PSI, which are not drawn.
    """
    z = sister.embeddings[layer.rows.clamp(min=0)]
    texts = sister.texts
    scores = stored.score(
        layer.name,
        replace(stored.config.score, subsamples=0),
        embeddings=z,
        pool=sister.embeddings[layer.patches.rows[layer.name, "pool"]],
        text_embeddings=texts.embeddings,
        concept_ids=texts.concept_ids,
        unrelated_text_embeddings=texts.unrelated,
        unrelated_concept_ids=texts.unrelated_ids,
        progress=progress,
    )
    clusters = describe_clusters(z, scores, texts.embeddings, texts.concept_ids)
    channels = layer.sites.channels
    return Judgement(
        channel_scores(layer.name, channels, scores),
        cluster_scores(layer.name, channels, clusters, sister.concepts),
        scores.assignments.numpy(),
        scores.notes,
    )


def judged_before(stored: StoredRun, layer: StoredLayer) -> Judgement:
    """What the run's own tables say of a layer."""
    run = stored.run
    ours = pc.field("layer") == layer.name
    notes = run.manifest["stages"]["score"]["notes"].get(layer.name, ())
    return Judgement(
        run.channels.filter(ours),
        run.clusters.filter(ours),
        stored.assignments(layer.name).numpy(),
        tuple(notes),
    )
