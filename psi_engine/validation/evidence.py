"""What every component says of every unit, under every null: the columns of ``units.parquet``.

========================  =====================================================
``s``, ``q``, ``q_coarse``  raw values
``d:MEASURE:LEVEL``       raw D, such as ``d:contrast:concept``
``…|NULL.z``, ``….p``     z and p of that value under a null: ``s|pool.z``
``rotated-d:…``           the control: D with the text embeddings rotated at random
``peer:NAME``             other projects' measures, turned so that high = polysemantic
========================  =====================================================

Components are scored apart and combined later, so no score is computed once per combination.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import zip_longest
from typing import Any, NamedTuple, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from psi_engine import baselines
from psi_engine.config import DLevel, DMeasure, ScoreConfig
from psi_engine.inputs import Texts
from psi_engine.nulls.draws import frames
from psi_engine.nulls.registry import NULLS
from psi_engine.ops.random import hash_keys, string_key
from psi_engine.scores.score import score
from psi_engine.types import Progress, Scores
from psi_engine.validation.relations import Parents, coarse_labels
from psi_engine.validation.suite import Suite

Columns = dict[str, NDArray[np.float64]]

CHEAP_NULLS = frozenset(
    {"rotation-shared", "rotation", "pool", "neighborhood", "exact", "permutation", "text-rotation"}
)
"""Nulls that cost next to nothing per channel and replicate; the others get fewer replicates."""

CONTROL_NULLS = ("text-rotation", "pool")
"""The D nulls of the rotated-text control: the calibrated preset's, and one that fails it."""

_FEWEST_EXAMPLES = 10
# What the machine interpretability score needs on either side.


@dataclass(frozen=True)
class EvidenceConfig:
    """How units are scored."""

    score: ScoreConfig
    """Clusters, solver, seed, and the replicates of :data:`CHEAP_NULLS`."""
    channel_replicates: int
    """Replicates, at most, of the other nulls, which are drawn for every channel by itself."""
    device: str = "auto"


class _Task(NamedTuple):
    """One call of the scorer: which null of each component, and what goes in."""

    s: str | None = None
    q: str | None = None
    labels: str = "q"
    d: tuple[str, str, str] | None = None  # measure, level, null
    rotated: bool = False


def gather(
    suite: Suite,
    texts: Texts,
    parents: Parents,
    config: EvidenceConfig,
    progress: Progress | None = None,
) -> tuple[Columns, tuple[str, ...]]:
    """Score a suite under every null and with the peers' measures.

    Parameters
    ----------
    texts : Texts
        ``embeddings`` None leaves D out; ``unrelated`` None leaves the unrelated-text null out.
    parents : mapping
        Parents of labels; empty leaves coarse labels out.

    Returns
    -------
    columns : dict of str to ndarray
        float64 (units,) each; NaN where a unit has no score.
    notes : tuple of str
        What the scorer said, each once.
    """
    tasks = list(_tasks(texts, bool(parents)))
    coarse = coarse_labels(suite.labels, parents)
    rotated = None if texts.embeddings is None else rotate(texts.embeddings, config.score.seed)
    columns: Columns = {}
    notes: dict[str, None] = {}
    if texts.embeddings is None:
        notes["the encoder has no texts: D is left out everywhere"] = None
    if not parents:
        notes["no coarse mapping: related kinds and coarse labels are left out"] = None
    for number, task in enumerate(tasks):
        found = _score(suite, texts, rotated, coarse, task, config)
        columns.update(_columns(found, task))
        # what a call was not given it should not miss: other calls have it
        notes.update(dict.fromkeys(note for note in found.notes if not note.startswith("no ")))
        if progress is not None:
            progress(f"scoring {suite.name}", number + 1, len(tasks))
    columns.update(_peers(suite))
    return dict(sorted(columns.items())), tuple(notes)


def d_variants(texts: Texts) -> list[tuple[str, str]]:
    """Measures and levels of D; prompt level only where concepts have several prompts."""
    if texts.embeddings is None:
        return []
    ids = texts.concept_ids
    several = ids is not None and len(torch.unique(ids)) < len(ids)
    levels = [level for level in get_args(DLevel) if several or level == "concept"]
    return [(measure, level) for measure in get_args(DMeasure) for level in levels]


def d_nulls(texts: Texts) -> list[str]:
    """D's nulls that the texts allow."""
    return [name for name in NULLS["d"] if name != "unrelated-text" or texts.unrelated is not None]


def rotate(embeddings: Tensor, seed: int) -> Tensor:
    """Turn the rows of (n, dim) by one Haar-random rotation of the space: float64 (n, dim).

    All cosines between texts stay; those to images lose their meaning.
    """
    dim = embeddings.shape[1]
    key = hash_keys(seed, string_key("validation/rotation"))
    return embeddings.cpu().double() @ frames(key[None], dim, dim)[0].mT


def _tasks(texts: Texts, coarse: bool) -> Iterator[_Task]:
    """Calls that cover every null; a call takes one of S, one of Q and one of D."""
    d = [(*variant, null) for variant in d_variants(texts) for null in d_nulls(texts)]
    q = [(null, labels) for labels in ("q", "q_coarse")[: 1 + coarse] for null in NULLS["q"]]
    for cheap in (True, False):  # apart, because a call has one number of replicates
        ours = [name for name in NULLS["s"] if (name in CHEAP_NULLS) == cheap]
        labelled = [item for item in q if (item[0] in CHEAP_NULLS) == cheap]
        named = [item for item in d if (item[2] in CHEAP_NULLS) == cheap]
        for one, two, three in zip_longest(ours, labelled, named):
            null, labels = two or (None, "q")
            yield _Task(one, null, labels, three)
    for variant in d_variants(texts):
        for null in CONTROL_NULLS:
            yield _Task(d=(*variant, null), rotated=True)


def _score(
    suite: Suite,
    texts: Texts,
    rotated: Tensor | None,
    coarse: Tensor,
    task: _Task,
    config: EvidenceConfig,
) -> Scores:
    nulls = (task.s, task.q, task.d[2] if task.d else None)
    few = any(name is not None and name not in CHEAP_NULLS for name in nulls)
    replicates = config.score.replicates
    changes: dict[str, Any] = {
        # A component that is not asked for costs nothing under these two.
        "s_null": task.s or "rotation-shared",
        "q_null": task.q or "exact",
        "replicates": min(replicates, config.channel_replicates) if few else replicates,
    }
    if task.d is not None:
        changes |= dict(zip(("d_measure", "d_level", "d_null"), task.d, strict=True))
    bank = task.d is not None and task.d[2] == "unrelated-text"
    labels = {"q": suite.labels, "q_coarse": coarse}[task.labels]
    named = task.d is not None
    return score(
        suite.embeddings,
        labels=labels if task.q is not None else None,
        text_embeddings=(rotated if task.rotated else texts.embeddings) if named else None,
        concept_ids=texts.concept_ids if named else None,
        pool=suite.pool,
        unrelated_text_embeddings=texts.unrelated if bank else None,
        unrelated_concept_ids=texts.unrelated_ids if bank else None,
        channel_ids=hash_keys(string_key(suite.name), torch.arange(len(suite.plans))),
        config=replace(config.score, **changes),
        device=config.device,
    )


def _columns(scores: Scores, task: _Task) -> Columns:
    names: dict[str, tuple[str, str]] = {}
    if task.s is not None:
        names["s"] = ("s", task.s)
    if task.q is not None:
        names["q"] = (task.labels, task.q)
    if task.d is not None:
        measure, level, null = task.d
        names["d"] = (f"{'rotated-' * task.rotated}d:{measure}:{level}", null)
    columns: Columns = {}
    for component, (name, null) in names.items():
        raw = getattr(scores, component)
        if raw is None:  # no known label in the whole suite
            continue
        columns[name] = raw.numpy()
        columns[f"{name}|{null}.z"] = getattr(scores, component + "_z").numpy()
        columns[f"{name}|{null}.p"] = getattr(scores, component + "_p").numpy()
    columns["n_clusters"] = scores.n_clusters.numpy().astype(np.float64)
    return columns


def _peers(suite: Suite) -> Columns:
    """Other projects' measures, each turned so that polysemantic units should be high."""
    x = suite.embeddings
    found = baselines.measure_peers(x, weights=suite.weights, centre=suite.pool.mean(0))
    peers: dict[str, Tensor] = {}
    for name, sign in baselines.DIRECTIONS.items():
        if sign > 0:
            peers[name] = found[name]
        elif sign < 0 and f"one_minus_{name}" not in found:
            peers[f"one_minus_{name}"] = 1 - found[name]
    bottom = suite.bottom
    if bottom is not None and min(x.shape[1], bottom.shape[1]) >= _FEWEST_EXAMPLES:
        for name, temperature in (("mis", 0.16), ("ii", None)):
            found_at = baselines.interpretability(x, bottom, temperature=temperature)
            peers[f"one_minus_{name}"] = 1 - found_at
    return {f"peer:{name}": values.numpy() for name, values in peers.items()}
