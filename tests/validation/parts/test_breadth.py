"""D under narrower words: which words, which comparisons, which cannot be had."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

import psi_engine as psi
from psi_engine.inputs import Texts
from psi_engine.stored import StoredRun
from psi_engine.validation.part import Context, Options, Result
from psi_engine.validation.parts import breadth
from psi_engine.validation.parts.breadth import PART, class_concepts, compute, needs

OPTIONS = Options(bootstrap=40, replicates=40)


@pytest.fixture(scope="module")
def result(toy_stored: StoredRun, tmp_path_factory: pytest.TempPathFactory) -> Result:
    return compute(Context(toy_stored, OPTIONS, tmp_path_factory.mktemp("breadth")))


def rows(table: Any, **where: Any) -> list[dict[str, Any]]:
    return [r for r in table.to_pylist() if all(r[name] == x for name, x in where.items())]


def fixed(stored: StoredRun, concepts: tuple[str, ...], **changes: Any) -> StoredRun:
    """The run as an encoder of fixed texts would have left it."""
    generator = torch.Generator().manual_seed(0)
    dim = next(iter(stored.layers.values())).all_embeddings.shape[1]
    texts = Texts(torch.randn(len(concepts), dim, generator=generator), None, None, None)
    return replace(stored, texts=texts, concepts=concepts, **changes)


def test_words_and_levels(result: Result) -> None:
    table = result.tables["vocabularies"].to_pylist()
    assert [r["condition"] for r in table] == [
        "whole, concepts", "classes, concepts", "other words, concepts",
        "whole, prompts", "classes, prompts", "other words, prompts",
    ]  # fmt: skip
    assert table[1]["concepts"] == 3
    assert table[1]["prompts"] == 18
    assert table[0]["prompts"] == table[1]["prompts"] + table[2]["prompts"]
    pairs = {(r["one"], r["other"]) for r in result.tables["agreement"].to_pylist()}
    assert len(pairs) == 9
    assert ("whole, concepts", "classes, prompts") not in pairs


def test_scores_are_those_of_the_scorer_given_these_words(
    result: Result, toy_stored: StoredRun
) -> None:
    layer, texts = toy_stored.layers["conv2"], toy_stored.texts
    classes = texts.concept_ids < 3
    config = replace(toy_stored.config.score, d_level="prompt", replicates=40)
    scores = psi.score(
        layer.embeddings, labels=layer.labels, text_embeddings=texts.embeddings[classes],
        pool=layer.pool, mask=layer.mask, channel_ids=layer.channel_ids, config=config,
        device="cpu",
    )  # fmt: skip
    found = rows(result.tables["channels"], layer="conv2", condition="classes, prompts")
    assert [r["verdict"] for r in found] == list(scores.verdict)
    x = np.array([r["d_z"] for r in found], float)
    np.testing.assert_array_equal(x, scores.d_z.numpy())


def test_correlations_and_verdicts_follow_from_the_channels(result: Result) -> None:
    def of(name: str, condition: str, layer: str) -> np.ndarray:
        found = rows(result.tables["channels"], layer=layer, condition=condition)
        return np.array([r[name] for r in found], object)

    for row in rows(result.tables["agreement"], layer="conv2", measure="d"):
        x, y = (of("d", row[end], "conv2").astype(float) for end in ("one", "other"))
        both = ~(np.isnan(x) | np.isnan(y))
        if row["spearman"] is not None:
            assert row["spearman"] == pytest.approx(stats.spearmanr(x[both], y[both]).statistic)
    (row,) = rows(
        result.tables["agreement"], layer="conv2", measure="log_psi", one="whole, concepts",
        other="whole, prompts",
    )  # fmt: skip
    before, after = (of("verdict", row[end], "conv2") for end in ("one", "other"))
    x, y = (of("log_psi", row[end], "conv2").astype(float) for end in ("one", "other"))
    scored = ~(np.isnan(x) | np.isnan(y))
    assert scored.sum() == len(before) - 1  # the dead channel agrees with itself, and says nothing
    assert row["same_verdict"] == pytest.approx((before == after)[scored].mean())
    moves = rows(result.tables["verdicts"], layer="conv2", one=row["one"], other=row["other"])
    assert sum(m["channels"] for m in moves) == len(before)
    for move in moves:
        count = ((before == move["first"]) & (after == move["second"])).sum()
        assert move["channels"] == count


def test_channels_that_cannot_be_scored_agree_on_nothing() -> None:
    verdicts = ("monosemantic", "polysemantic", "not scorable", "polysemantic")
    psi = torch.tensor([0.1, 0.9, torch.nan, 0.8])
    one = SimpleNamespace(verdict=verdicts, psi=psi)
    moved = ("polysemantic", "polysemantic", "not scorable", "not scorable")
    other = SimpleNamespace(verdict=moved, psi=torch.tensor([0.9, 0.9, torch.nan, torch.nan]))
    assert breadth._same_verdict([[one], [other]]) == 0.5  # of the first two
    assert breadth._same_verdict([[one, one], [one, other]]) == 0.8
    none = SimpleNamespace(verdict=("not scorable",), psi=torch.tensor([torch.nan]))
    assert breadth._same_verdict([[none], [none]]) is None


def test_clusters_named_by_a_class_are_counted(result: Result, toy_stored: StoredRun) -> None:
    for row in result.tables["names"].to_pylist():
        best = [
            c["concepts"][0]["concept"] for c in toy_stored.run.clusters.to_pylist()
            if c["layer"] == row["layer"] and c["concepts"]
        ]  # fmt: skip
        assert row["clusters"] == len(best)
        assert row["named_by_class"] == sum(name in ("red", "green", "blue") for name in best)


def test_fixed_texts_have_one_level_and_the_classes_they_name(
    toy_stored: StoredRun, tmp_path: Path
) -> None:
    run = fixed(toy_stored, ("Green", "moss", "red, scarlet", "stone"))
    assert class_concepts(run).tolist() == [True, False, True, False]
    found = compute(Context(run, OPTIONS, tmp_path))
    assert [r["condition"] for r in found.tables["vocabularies"].to_pylist()] == [
        "whole, concepts", "classes, concepts", "other words, concepts"
    ]  # fmt: skip
    assert found.notes == (
        "1 of 3 classes name no concept",
        "every concept has one prompt: prompt and concept level are the same",
    )


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"texts": Texts(None, None, None, None)}, "no text side"),
        ({"class_names": None}, "no class names"),
        ({"concepts": ("moss", "stone", "sky", "red")}, "1 of 4 concepts are classes"),
    ],
)
def test_what_cannot_be_compared_is_refused_with_the_reason(
    toy_stored: StoredRun, tmp_path: Path, change: dict[str, Any], reason: str
) -> None:
    run = replace(fixed(toy_stored, ("green", "moss", "red", "stone")), **change)
    assert reason in str(needs(Context(run, OPTIONS, tmp_path)))


def test_all_can_be_had_of_the_toy_run(toy_stored: StoredRun, tmp_path: Path) -> None:
    assert needs(Context(toy_stored, OPTIONS, tmp_path)) is None


def test_tables_alone_make_the_figure(result: Result, tmp_path: Path) -> None:
    files = PART.draw(result.tables, tmp_path / "breadth")
    assert [f.name for f in files] == ["breadth.png", "breadth.svg", "breadth.pdf"]
    text = files[1].read_text(encoding="utf-8")
    (row,) = rows(
        result.tables["agreement"], layer="all layers", measure="d_z", one="whole, concepts",
        other="classes, concepts",
    )  # fmt: skip
    assert f"ρ {row['spearman']:.2f}" in text
