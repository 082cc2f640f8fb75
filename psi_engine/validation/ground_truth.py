"""Ground truth: the concept mix and the planted units, every measure, one table.

Written to the output folder: ``units.parquet`` (one row per unit: its kind and every raw value,
z and p), ``ground_truth.parquet`` and ``.csv`` (one row per measure, half of the classes and
contrast), ``ground_truth.png``, ``.svg`` and ``.pdf`` (drawn from that table),
``manifest.json``.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import torch

from psi_engine import artifacts
from psi_engine.config import ScoreConfig
from psi_engine.data import ImageSource, needs_download, open_source, require_download
from psi_engine.demo import images_path
from psi_engine.demo.world import CLASS_NAMES, CLASSES, SHAPES, TEXTURES
from psi_engine.distributed import LOCK, only_job
from psi_engine.encoders import Encoder, check_encoder, load_encoder
from psi_engine.errors import InputError
from psi_engine.inputs import Texts
from psi_engine.models import LoadedModel, load_model, may_download
from psi_engine.ops.backend import resolve_device
from psi_engine.provenance import versions
from psi_engine.report.plots.style import FORMS
from psi_engine.types import Progress
from psi_engine.validation.combinations import COMBINATIONS, Combination
from psi_engine.validation.concept_mix import concept_mix, split_images
from psi_engine.validation.contrasts import MOST_RESAMPLES, RESAMPLES, judge
from psi_engine.validation.evidence import Columns, EvidenceConfig, gather
from psi_engine.validation.figure import draw
from psi_engine.validation.headline import TABLE
from psi_engine.validation.images import Images, labels_of, see_images
from psi_engine.validation.measures import measures
from psi_engine.validation.plan import split_classes
from psi_engine.validation.planted import planted_units
from psi_engine.validation.relations import Parents, parents_of, read_parents
from psi_engine.validation.suite import Suite
from psi_engine.vocabulary import build_vocabulary, unrelated_bank

UNITS, TABLE_CSV, FIGURE = "units.parquet", "ground_truth.csv", "ground_truth"

_DEMO_MODEL = "psi_engine.demo:classifier"
_DEMO_TOP_K = 20
# The demo has 60 images of each class, half of them for sets.


@dataclass(frozen=True)
class GroundTruthConfig:
    """What is judged, on what, and how finely; :meth:`demo` needs nothing."""

    data: str
    """Labelled images: a folder, a Parquet file, or ``tiny-imagenet``."""
    model: str
    """The classifier that planted units look at."""
    weights: str = "default"
    encoder: str = "open_clip:ViT-B-32"
    encoder_weights: str | None = None
    coarse: str | None = None
    """A file that maps classes to parents; None = no related kinds and no coarse labels."""
    max_images: int | None = None
    image_size: int | None = None
    """Side of the model's input; None = the model's own."""
    sets: int = 100
    """Sets of the concept mix per kind, half of them in each half of the classes."""
    units: int = 100
    """Planted units per kind, likewise."""
    top_k: int = 50
    """Patches per set and unit, K."""
    pool: int = 4096
    """Images in the pool of the planted units."""
    replicates: int = 1000
    """Draws of nulls that channels share."""
    channel_replicates: int = 50
    """Draws, at most, of nulls that every channel needs its own of."""
    bootstrap: int = RESAMPLES
    """Resamples of the units behind the intervals."""
    seed: int = 0
    out: str = "runs/ground-truth"
    device: str = "auto"

    def __post_init__(self) -> None:
        for name, least in (
            ("sets", 4), ("units", 4), ("top_k", 4), ("channel_replicates", 2), ("bootstrap", 20)
        ):  # fmt: skip
            if getattr(self, name) < least:
                raise InputError(
                    f"{name} is too small", got=getattr(self, name), expected=f"at least {least}"
                )
        if self.bootstrap > MOST_RESAMPLES:
            raise InputError(
                "bootstrap is too large", got=self.bootstrap, expected=f"at most {MOST_RESAMPLES}"
            )
        if self.pool < self.top_k:
            raise InputError(
                "the pool is smaller than a unit's patches",
                got=f"pool {self.pool}, top_k {self.top_k}",
                expected=f"better {10 * self.top_k}",
            )
        ScoreConfig(replicates=self.replicates, seed=self.seed)  # refuses what scoring would

    @classmethod
    def demo(cls, **changes: Any) -> GroundTruthConfig:
        """The settings for the demo world, with changes."""
        settings: dict[str, Any] = {
            "data": str(images_path()),
            "model": _DEMO_MODEL,
            "encoder": "psi_engine.demo:encoder",
            "top_k": _DEMO_TOP_K,
            "out": "runs/demo-ground-truth",
        }
        return cls(**settings | changes)


@dataclass(frozen=True)
class _Inputs:
    source: ImageSource
    model: LoadedModel
    encoder: Encoder
    mapping: Mapping[str, tuple[str, ...]]
    device: torch.device


def run_ground_truth(
    config: GroundTruthConfig,
    *,
    combinations: Mapping[str, Combination] = COMBINATIONS,
    progress: Progress | None = None,
) -> Path:
    """Build both suites, judge every measure on them and write the folder.

    Parameters
    ----------
    combinations : mapping
        Ways to combine the components, by name.
    progress : callable, optional

    Returns
    -------
    Path
        The output folder.

    Raises
    ------
    InputError
        For anything wrong with the options, the mapping, the model, the data or the encoder.
    RunFolderError
        The folder holds something else, or another job is writing there.
    """
    started = time.perf_counter()
    inputs = _check(config, progress)
    with only_job(Path(config.out) / LOCK):
        return _run(config, inputs, combinations, progress, started)


def _run(
    config: GroundTruthConfig,
    inputs: _Inputs,
    combinations: Mapping[str, Combination],
    progress: Progress | None,
    started: float,
) -> Path:
    folder = artifacts.RunFolder(
        Path(config.out),
        {
            "validation": "ground-truth",
            "model": inputs.model.name,
            "weights": inputs.model.fingerprint[:16],
            "data": f"{len(inputs.source)} images {inputs.source.fingerprint[:16]}",
        },
    )
    # what other settings left here; the manifest tells of these once their tables are written
    for name in (UNITS, TABLE, TABLE_CSV, *(f"{FIGURE}.{form}" for form in FORMS)):
        (folder.path / name).unlink(missing_ok=True)
    images = see_images(
        folder.path, inputs.source, inputs.model, inputs.encoder, inputs.device, progress
    )
    seen = time.perf_counter()
    parents = _parents(inputs, images)
    texts = _texts(inputs)
    evidence = EvidenceConfig(
        ScoreConfig(replicates=config.replicates, seed=config.seed),
        config.channel_replicates,
        config.device,
    )
    tables, notes = [], {}
    for suite in _suites(config, images, parents):
        columns, told = gather(suite, texts, parents, evidence, progress)
        tables.append(units_table(suite, columns, inputs.source.class_names))
        notes[suite.name] = [*suite.notes, *told]
    units = pa.concat_tables(tables, promote_options="default")
    artifacts.write_table(folder.path / UNITS, units)
    table = judge_units(units, config.seed, combinations, config.bootstrap, progress)
    artifacts.write_table(folder.path / TABLE, table)
    with artifacts.atomic(folder.path / TABLE_CSV) as temporary:
        pyarrow.csv.write_csv(table, temporary)
    draw(table, folder.path / FIGURE)
    folder.describe(
        config=asdict(config),
        versions=versions(),
        counts={
            "images": len(images.ids),
            "unreadable": len(inputs.source) - len(images.ids),
            "classes": len(torch.unique(images.labels[images.labels >= 0])),
            "classes_with_parents": len(parents),
            "units": _count(units),
            "measures": len(table["measure"].unique()),
        },
        notes=notes,
        fingerprints={
            "weights": inputs.model.fingerprint,
            "data": inputs.source.fingerprint,
            "encoder": inputs.encoder.fingerprint,
        },
        encoder={"name": inputs.encoder.name, "text": inputs.encoder.text},
        seconds={
            "images": round(seen - started, 1),
            "judging": round(time.perf_counter() - seen, 1),
        },
    )
    return folder.path


def judge_units(
    units: pa.Table,
    seed: int = 0,
    combinations: Mapping[str, Combination] = COMBINATIONS,
    resamples: int = RESAMPLES,
    progress: Progress | None = None,
) -> pa.Table:
    """Judge every measure from the table of units alone, with other combinations if wanted.

    Parameters
    ----------
    units : pyarrow.Table
        ``units.parquet``.

    Returns
    -------
    pyarrow.Table
        As :func:`psi_engine.validation.contrasts.judge`.
    """
    names = units["suite"].unique().to_pylist()
    tables = []
    for number, name in enumerate(names):
        own = units.filter(pa.compute.equal(units["suite"], name))
        kinds, half = (np.array(own[column].to_pylist()) for column in ("kind", "half"))
        columns = {
            field.name: own[field.name].to_numpy(zero_copy_only=False)
            for field in own.schema
            if pa.types.is_float64(field.type)
        }
        listed = measures(columns, kinds, half == "tuning", combinations)
        tables.append(judge(name, kinds, half, listed, seed, resamples))
        if progress is not None:
            progress("judging", number + 1, len(names))
    return pa.concat_tables(tables)


def units_table(suite: Suite, columns: Columns, class_names: tuple[str, ...] | None) -> pa.Table:
    """One row per unit: its kind, half, classes and images, and every column of evidence."""
    named = [
        [class_names[c] if class_names is not None else str(c) for c in plan.classes]
        for plan in suite.plans
    ]
    about = {
        "suite": pa.array([suite.name] * len(suite.plans)),
        "unit": pa.array(range(len(suite.plans)), pa.int64()),
        "kind": pa.array([plan.kind for plan in suite.plans]),
        "half": pa.array([plan.half for plan in suite.plans]),
        "classes": pa.array(named, pa.list_(pa.string())),
        "image_ids": pa.array(suite.image_ids.tolist(), pa.list_(pa.int64())),
        "purity": pa.array(suite.purity.numpy(), mask=np.isnan(suite.purity.numpy())),
    }
    values = {name: pa.array(column, mask=np.isnan(column)) for name, column in columns.items()}
    return pa.table({**about, **values})


def _check(config: GroundTruthConfig, progress: Progress | None) -> _Inputs:
    """Find and check everything; what is here first, downloads last."""
    if config.coarse is not None:
        mapping = read_parents(Path(config.coarse))
    elif config.model == _DEMO_MODEL:
        kinds = [(SHAPES[shape], TEXTURES[texture]) for shape, texture in CLASSES]
        mapping = dict(zip(CLASS_NAMES, kinds, strict=True))
    else:
        mapping = {}
    artifacts.refuse_other_run(Path(config.out), {"validation": "ground-truth"})
    device = resolve_device(config.device)
    downloads = may_download(config.model, config.weights)
    model = load_model(config.model, "none" if downloads else config.weights, config.image_size)
    if needs_download(config.data):
        require_download(config.data)
    source = open_source(config.data, config.max_images, progress)
    labels = labels_of(source)
    if mapping:
        parents_of(mapping, source.class_names, torch.unique(labels[labels >= 0]).tolist())
    split_images(labels, config.top_k, config.seed)  # refuses what no sets can be drawn from
    check_encoder(config.encoder, config.encoder_weights)
    if downloads:
        model = load_model(config.model, config.weights, config.image_size)
    encoder = load_encoder(config.encoder, config.encoder_weights, device)
    return _Inputs(source, model, encoder, mapping, device)


def _parents(inputs: _Inputs, images: Images) -> Parents:
    present = torch.unique(images.labels[images.labels >= 0]).tolist()
    if not inputs.mapping or not present:
        return {}
    return parents_of(inputs.mapping, inputs.source.class_names, present)


def _texts(inputs: _Inputs) -> Texts:
    encoder = inputs.encoder
    if encoder.text != "encoder":
        return Texts(encoder.concept_embeddings, None, None, None)
    prompts = build_vocabulary(inputs.source.class_names)
    bank = unrelated_bank(exclude=prompts.concepts)
    embedded = encoder.encode_texts(list(prompts.texts))
    if len(bank.concepts) < len(prompts.concepts):
        return Texts(embedded, prompts.concept_ids, None, None)
    return Texts(
        embedded, prompts.concept_ids, encoder.encode_texts(list(bank.texts)), bank.concept_ids
    )


def _suites(config: GroundTruthConfig, images: Images, parents: Parents) -> list[Suite]:
    present = torch.unique(images.labels[images.labels >= 0]).tolist()
    halves = split_classes(present, config.seed)
    mix = concept_mix(
        images.embeddings,
        images.labels,
        halves,
        parents,
        top_k=config.top_k,
        sets=config.sets,
        seed=config.seed,
    )
    planted = planted_units(
        images.logits,
        images.embeddings,
        images.labels,
        halves,
        parents,
        top_k=config.top_k,
        pool=config.pool,
        units=config.units,
        seed=config.seed,
    )
    return [mix, planted]


def _count(units: pa.Table) -> dict[str, dict[str, int]]:
    found: dict[str, dict[str, int]] = {}
    for suite, kind in zip(units["suite"].to_pylist(), units["kind"].to_pylist(), strict=True):
        of = found.setdefault(suite, {})
        of[kind] = of.get(kind, 0) + 1
    return found
