"""Class names against the whole vocabulary, prompts against concepts: what D makes of the words.

S and Q know no words, so that whatever moves between the conditions is D. What an encoder of
fixed texts has decides what can be compared: its texts are concepts of one prompt each, and the
classes are those of its concepts that the data's class names name.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, get_args

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from psi_engine.config import DLevel
from psi_engine.names import clean_class_names
from psi_engine.ops.random import hash_keys, string_key
from psi_engine.report.plots.breadth import draw
from psi_engine.stored import StoredRun
from psi_engine.types import Scores
from psi_engine.validation.agreement import Columns, agreement
from psi_engine.validation.part import Context, Part, Result

ALL = "all layers"
WHOLE, CLASSES, OTHERS = "whole", "classes", "other words"
"""The run's vocabulary; those of its concepts that are classes of the data; the rest."""

_LEAST = 2
# Concepts a vocabulary needs: a name has a runner-up.
_MEASURES = ("d", "d_z", "log_psi")


@dataclass(frozen=True)
class _Words:
    """One condition: a vocabulary at a level. chosen : int64 (prompts,), its rows of the run's."""

    vocabulary: str
    level: DLevel
    chosen: Tensor
    concepts: int

    @property
    def name(self) -> str:
        return f"{self.vocabulary}, {self.level}s"


def needs(context: Context) -> str | None:
    """Say why nothing can be compared: no text, or neither classes nor templates in it."""
    if context.stored.texts.embeddings is None:
        return "the run's encoder has no text side, so that there is no D"
    if len(_conditions(context.stored)[0]) < 2:
        return "; ".join(_conditions(context.stored)[1])
    return None


def compute(context: Context) -> Result:
    """Score every layer with each vocabulary at each level, and compare.

    Returns
    -------
    Result
        ``agreement``: per layer (and all together), pair of conditions and measure (D, its z, log
        PSI) Spearman's ρ with its interval, and of log PSI ``same_verdict``, the share of the
        channels scored under both whose verdict stays. ``verdicts``: per layer and pair the
        channels that go from each verdict to each. ``channels``: D, its z and p, log PSI and
        verdict of every channel under each condition. ``vocabularies``: concepts and prompts of
        each condition. ``names``: per layer, how many clusters the whole vocabulary names by a
        class.
    """
    stored, options = context.stored, context.options
    listed, notes = _conditions(stored)
    draws = options.replicates or stored.config.score.replicates
    found: dict[tuple[str, str], Scores] = {}
    for number, layer in enumerate(stored.layers):
        for place, words in enumerate(listed):
            config = replace(
                stored.config.score, d_level=words.level, replicates=draws, subsamples=0
            )
            ids = _concept_ids(stored)
            found[layer, words.name] = stored.score(
                layer,
                config,
                text_embeddings=_texts(stored)[words.chosen],
                concept_ids=ids[words.chosen],
            )
            step = number * len(listed) + place + 1
            context.tell("vocabularies", step, len(stored.layers) * len(listed))
    rows, verdicts = [], []
    for one, other in _pairs(listed):
        names = {"one": one.name, "other": other.name}
        for layer in [*stored.layers, *([ALL] if len(stored.layers) > 1 else [])]:
            own = list(stored.layers) if layer == ALL else [layer]
            pair = [[found[name, words.name] for name in own] for words in (one, other)]
            key = int(hash_keys(options.seed, string_key(f"validation/breadth/{layer}")))
            first, second = (_columns(scores) for scores in pair)
            before, after = ([v for s in scores for v in s.verdict] for scores in pair)
            same = _same_verdict(pair)
            for row in agreement(first, second, key=key, resamples=options.bootstrap):
                same_verdict = same if row["measure"] == "log_psi" else None
                rows.append({"layer": layer, **names, **row, "same_verdict": same_verdict})
            if layer != ALL:
                verdicts += _moves(layer, names, before, after)
    tables = {
        "agreement": pa.Table.from_pylist(rows),
        "verdicts": pa.Table.from_pylist(verdicts),
        "channels": _channels(stored, listed, found),
        "vocabularies": pa.Table.from_pylist([
            {"vocabulary": words.vocabulary, "level": words.level, "condition": words.name,
             "concepts": words.concepts, "prompts": len(words.chosen)}
            for words in listed
        ]),
        "names": _names(stored),
    }  # fmt: skip
    return Result(tables, tuple(notes), _headline(rows, stored))


def _texts(stored: StoredRun) -> Tensor:
    if stored.texts.embeddings is None:
        raise ValueError("the part needs texts")
    return stored.texts.embeddings


def _concept_ids(stored: StoredRun) -> Tensor:
    ids = stored.texts.concept_ids
    return torch.arange(len(_texts(stored))) if ids is None else ids


def class_concepts(stored: StoredRun) -> Tensor:
    """Which of the run's concepts are classes of its data, by name: bool (concepts,)."""
    concepts = stored.concepts or ()
    classes = {name.casefold() for name in clean_class_names(stored.class_names or ())}
    named = clean_class_names(concepts) if concepts else ()
    return torch.tensor([name.casefold() in classes for name in named], dtype=torch.bool)


def _conditions(stored: StoredRun) -> tuple[list[_Words], list[str]]:
    """Vocabularies and levels that can be had, the run's own first, and why others cannot."""
    ids, classes = _concept_ids(stored), class_concepts(stored)
    every = torch.ones_like(classes)
    notes = []
    vocabularies = {WHOLE: every}
    count, total = int(classes.sum()), len(classes)
    if stored.class_names is None:
        notes.append("the data have no class names: there is no vocabulary of classes alone")
    elif count < _LEAST or total - count < 1:
        notes.append(
            f"{count} of {total} concepts are classes of the data: "
            "classes and the whole vocabulary cannot be told apart"
        )
    else:
        vocabularies[CLASSES] = classes
        if total - count >= _LEAST:
            vocabularies[OTHERS] = ~classes
        unnamed = len(stored.class_names or ()) - count
        if unnamed > 0:
            notes.append(f"{unnamed} of {len(stored.class_names or ())} classes name no concept")
    own = stored.config.score.d_level
    levels: list[DLevel] = [own]
    if len(torch.unique(ids)) == len(ids):
        notes.append("every concept has one prompt: prompt and concept level are the same")
    else:
        levels += [level for level in get_args(DLevel) if level != own]
    listed = [
        _Words(name, level, torch.nonzero(kept[ids])[:, 0], int(kept.sum()))
        for level in levels
        for name, kept in vocabularies.items()
    ]
    return listed, notes


def _pairs(listed: list[_Words]) -> list[tuple[_Words, _Words]]:
    """Conditions that differ in the vocabulary or in the level, not in both."""
    return [
        (one, other)
        for place, one in enumerate(listed)
        for other in listed[place + 1 :]
        if (one.vocabulary == other.vocabulary) != (one.level == other.level)
    ]


def _same_verdict(pair: list[list[Scores]]) -> float | None:
    """Share of the channels scored under both conditions whose verdict stays; None of none."""
    kept = [
        a == b
        for one, other in zip(*pair, strict=True)
        for a, b, *psi in zip(one.verdict, other.verdict, one.psi, other.psi, strict=True)
        if not any(map(torch.isnan, psi))
    ]
    return float(np.mean(kept)) if kept else None


def _columns(scores: list[Scores]) -> Columns:
    return {
        name: np.concatenate([getattr(part, name).numpy() for part in scores]) for name in _MEASURES
    }


def _moves(
    layer: str, names: dict[str, str], before: list[str], after: list[str]
) -> list[dict[str, Any]]:
    counts: dict[tuple[str, str], int] = {}
    for pair in zip(before, after, strict=True):
        counts[pair] = counts.get(pair, 0) + 1
    return [
        {"layer": layer, **names, "first": a, "second": b, "channels": count}
        for (a, b), count in sorted(counts.items())
    ]


def _channels(
    stored: StoredRun, listed: list[_Words], found: dict[tuple[str, str], Scores]
) -> pa.Table:
    parts = []
    for layer, held in stored.layers.items():
        for words in listed:
            table = found[layer, words.name].to_arrow()
            size = len(table)
            about = {
                "layer": pa.array([layer] * size),
                "channel": pa.array(held.sites.channels.numpy()),
                "condition": pa.array([words.name] * size),
            }
            kept = ("d", "d_z", "d_p", "log_psi", "verdict")
            parts.append(pa.table({**about, **{name: table[name] for name in kept}}))
    return pa.concat_tables(parts)


def _names(stored: StoredRun) -> pa.Table:
    """Clusters of the run by whether their best concept is a class; from the run's own table."""
    classes = class_concepts(stored)
    known = {name for name, own in zip(stored.concepts or (), classes.tolist(), strict=True) if own}
    clusters = stored.run.clusters
    rows = []
    for layer in stored.layers:
        own = clusters.filter(pa.compute.equal(clusters["layer"], layer))["concepts"].to_pylist()
        best = [concepts[0]["concept"] for concepts in own if concepts]
        by_class = sum(name in known for name in best)
        rows.append({
            "layer": layer, "clusters": len(best), "named_by_class": by_class,
            "share": by_class / len(best) if best else None,
            "classes_in_vocabulary": float(classes.double().mean()),
        })  # fmt: skip
    return pa.Table.from_pylist(rows)


def _headline(rows: list[dict[str, Any]], stored: StoredRun) -> tuple[str, ...]:
    lines = []
    last = ALL if len(stored.layers) > 1 else next(iter(stored.layers))
    for row in rows:
        own = row["one"].startswith(f"{WHOLE},")  # the run's own words against others
        if row["layer"] == last and row["measure"] == "log_psi" and own and row["spearman"]:
            lines.append(
                f"{row['one']} against {row['other']}: ρ of log PSI {row['spearman']:.2f} "
                f"[{row['spearman_low']:.2f}, {row['spearman_high']:.2f}], verdicts the same in "
                f"{row['same_verdict']:.0%} ({last})"
            )
    return tuple(lines)


PART = Part("breadth", compute, draw, needs, options=("bootstrap", "replicates", "seed"), version=2)
