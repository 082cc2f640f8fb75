"""The ground truth of a run's own model, images and encoder: what ``--ground-truth`` does alone.

``psi-engine validate --ground-truth`` judges any model and images; this part takes them from the
run, keeps its folder in ``RUN/validation/ground-truth`` and its table and figure with the others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from psi_engine.inputs import reopen
from psi_engine.stored import StoredRun
from psi_engine.validation import figure
from psi_engine.validation.concept_mix import POOL_SHARE
from psi_engine.validation.ground_truth import GroundTruthConfig, run_ground_truth
from psi_engine.validation.headline import TABLE, preset_names, summarise
from psi_engine.validation.part import Context, Part, Result

_SHARE = 2 / 3
# Of a class's images for sets that one set takes at most, so that sets of a class differ.
_WORDS = {"none": "no labels", "full": "labels", "coarse": "coarse labels"}
_LEAST_PATCHES, _LEAST_CLASSES = 4, 4


def compute(context: Context) -> Result:
    """Judge every measure on units whose kind is known, with the run's model and encoder.

    Returns
    -------
    Result
        ``areas``: the table of :func:`psi_engine.validation.run_ground_truth`.

    Raises
    ------
    RunFolderError
        Model, images or encoder are not the run's any more.
    """
    options, config = context.options, context.stored.config
    reopen(context.stored.run)
    top_k = patches_of_a_set(context.stored)
    folder = run_ground_truth(
        GroundTruthConfig(
            data=config.data,
            model=config.model,
            weights=config.weights,
            encoder=config.encoder,
            encoder_weights=config.encoder_weights,
            coarse=options.coarse,
            max_images=config.max_images,
            image_size=config.image_size,
            sets=options.sets,
            units=options.units,
            top_k=top_k,
            pool=max(config.mine.pool, top_k),
            replicates=options.replicates or config.score.replicates,
            channel_replicates=options.channel_replicates,
            bootstrap=options.bootstrap,
            seed=options.seed,
            out=str(context.folder),
            device=options.device or config.device,
        ),
        progress=context.progress,
    )
    summary = summarise(folder)
    notes = [f"{suite}: {note}" for suite, said in summary["notes"].items() for note in said]
    if top_k < config.mine.top_k:
        notes.append(
            f"sets and units of {top_k} patches, the run's channels have {config.mine.top_k}: "
            "the classes have no more images"
        )
    if config.concepts is not None:
        notes.append(
            f"D names clusters by the classes of the images, not by the run's {config.concepts}"
        )
    headline = [
        f"{suite}: worst contrast of PSI, {_WORDS[row['labels']]}, {row['unrelated']:.3f} "
        f"[{row['unrelated_low']:.3f}, {row['unrelated_high']:.3f}] on held-out classes"
        for suite, rows in summary["suites"].items()
        for row in preset_rows(rows)
        if "unrelated" in row
    ]
    return Result({"areas": pq.read_table(folder / TABLE)}, tuple(notes), tuple(headline))


def preset_rows(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """PSI as the calibrated preset makes it, without labels first; with D where there is one.

    Never the best row of all: a figure that was picked by its own value says too much.
    """
    by_name = {row["measure"]: row for row in rows}
    found = []
    for labels in _WORDS:
        held = [by_name[name] for name in preset_names(labels) if name in by_name]
        found += held[:1]
    return found


def patches_of_a_set(stored: StoredRun) -> int:
    """Patches per set: the run's K, or as many as the classes' images allow."""
    labels = stored.labels
    if labels is None or not bool((labels >= 0).any()):
        return 0
    held = torch.unique(labels[labels >= 0], return_counts=True)[1]
    for_sets = (held - (POOL_SHARE * held).long()).median()
    return min(stored.config.mine.top_k, int(_SHARE * int(for_sets)))


def needs(context: Context) -> str | None:
    """Ground truth is made of classes with images enough."""
    labels = context.stored.labels
    if labels is None or not bool((labels >= 0).any()):
        return "the images have no labels"
    classes = len(torch.unique(labels[labels >= 0]))
    if classes < _LEAST_CLASSES:
        return f"the images are of {classes} classes, fewer than {_LEAST_CLASSES}"
    if patches_of_a_set(context.stored) < _LEAST_PATCHES:
        return "the classes have too few images for sets of 4 patches"
    return None


def draw(tables: Mapping[str, pa.Table], stem: Path) -> list[Path]:
    """Draw the worst contrasts, as for a ground truth without a run."""
    return figure.draw(tables["areas"], stem)


PART = Part(
    "ground-truth",
    compute,
    draw,
    needs,
    (
        "bootstrap", "replicates", "channel_replicates", "sets", "units", "coarse", "seed",
    ),
    version=2,
)  # fmt: skip
