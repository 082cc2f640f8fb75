"""Encoder sensitivity: counts are what loops count; the same encoder in another basis agrees."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from scipy import stats
from sklearn.metrics import cohen_kappa_score, normalized_mutual_info_score

from psi_engine import embedding
from psi_engine.errors import EncoderError, InputError
from psi_engine.validation.part import Context, Options
from psi_engine.validation.parts.encoder import (
    ALL,
    PART,
    choice_rows,
    cluster_names,
    rank_rows,
    verdict_rows,
)
from psi_engine.validation.second_encoder import Judgement
from tests import toy

ROTATED, DULL = ("tests.validation.parts.test_encoder:" + name for name in ("rotated", "dull"))


class Rotated(toy.PixelEncoder):
    """The toy encoder in turned coordinates: every cosine, so every raw score, is the same."""

    name, fingerprint = "rotated", "toy-rotated"

    def turn(self, rows: torch.Tensor) -> torch.Tensor:
        generator = torch.Generator().manual_seed(1)
        square = torch.randn(48, 48, generator=generator, dtype=torch.float64)
        turned = rows.double() @ torch.linalg.qr(square).Q
        return torch.nn.functional.normalize(turned, dim=1).float()

    def encode_images(self, images: torch.Tensor) -> torch.Tensor:
        return self.turn(super().encode_images(images))

    def encode_texts(self, texts: list[str]) -> torch.Tensor:
        return self.turn(super().encode_texts(texts))


class Dull(toy.TextlessEncoder):
    """Sees the mean colour only, and has no words."""

    name, fingerprint = "dull", "toy-dull"

    def encode_images(self, images: torch.Tensor) -> torch.Tensor:
        rows = images.mean((2, 3)).repeat(1, 16) - 0.4
        return torch.nn.functional.normalize(rows, dim=1)


def rotated() -> Rotated:
    return Rotated()


def dull() -> Dull:
    return Dull()


def with_second(context: Context, spec: str | None) -> Context:
    return replace(context, options=replace(context.options, second_encoder=spec))


def rows_of(n: int, seed: int = 0) -> list[dict[str, Any]]:
    random = np.random.default_rng(seed)
    words = ("polysemantic", "monosemantic", "random-like")
    rows: list[dict[str, Any]] = []
    for channel in range(n):
        row: dict[str, Any] = {"layer": "a", "channel": channel}
        for end in ("first", "second"):
            row |= {f"{name}_{end}": None for name in ("q", "q_z", "d", "d_z")}
            row |= {f"{name}_{end}": random.normal() for name in ("s", "s_z", "log_psi", "clarity")}
            row |= {f"verdict_{end}": words[random.integers(3)], f"concept_{end}": None}
            row |= {f"n_clusters_{end}": int(random.integers(2, 4))}
        rows.append(row | {"cluster_nmi": random.random(), "shared_concepts": None})
    return rows


def test_ranks_and_choices_are_what_scipy_and_scikit_learn_say() -> None:
    rows, options = rows_of(40), Options(bootstrap=50)
    found = {row["measure"]: row for row in rank_rows("a", rows, options)}
    assert set(found) == {"s", "s_z", "log_psi", "clarity"}
    x, y = ([row[f"s_z_{end}"] for row in rows] for end in ("first", "second"))
    assert found["s_z"]["spearman"] == pytest.approx(stats.spearmanr(x, y).statistic)
    assert found["s_z"]["kendall"] == pytest.approx(stats.kendalltau(x, y).statistic)
    choices = {row["what"]: row for row in choice_rows("a", rows, options)}
    assert set(choices) == {"same verdict", "same n_clusters", "cluster_nmi"}
    pairs = [(row["verdict_first"], row["verdict_second"]) for row in rows]
    told = choices["same verdict"]
    assert told["mean"] == sum(a == b for a, b in pairs) / 40
    assert told["kappa"] == pytest.approx(cohen_kappa_score(*zip(*pairs, strict=True)))
    assert told["low"] <= told["mean"] <= told["high"]
    assert choices["cluster_nmi"]["mean"] == pytest.approx(
        np.mean([row["cluster_nmi"] for row in rows])
    )
    counts = {(r["first"], r["second"]): r["channels"] for r in verdict_rows("a", rows)}
    assert len(counts) == 9
    assert all(pairs.count(pair) == count for pair, count in counts.items())


def test_names_of_a_channel_stand_by_size_and_equal_sizes_by_cluster() -> None:
    clusters = pa.table(
        {
            "channel": [4, 4, 4, 9],
            "size": [3, 7, 3, 5],
            "concepts": [[{"concept": name, "similarity": 0.5}] for name in "abc"] + [None],
        }
    )
    judged = Judgement(pa.table({}), clusters, np.zeros((0, 0), np.int64), ())
    assert cluster_names(judged) == {4: ["b", "a", "c"]}


def test_the_same_encoder_in_turned_coordinates_agrees(context: Context, tmp_path: Path) -> None:
    """Raw S and D are the same numbers; S and the clusters do not depend on the coordinates."""
    context = with_second(context, ROTATED)
    assert PART.needs(context) is None
    result = PART.compute(context)
    rows = [row for row in result.tables["channels"].to_pylist() if row["status_first"] != "failed"]
    channels = context.stored.run.channels.to_pylist()
    assert [row["psi_first"] for row in result.tables["channels"].to_pylist()] == [
        row["psi"] for row in channels
    ]
    for row in rows:
        if row["cluster_nmi"] == pytest.approx(1.0):
            for name in ("s", "q", "d"):
                assert row[f"{name}_first"] == pytest.approx(row[f"{name}_second"], abs=1e-4)
            assert row["concepts_first"] == row["concepts_second"]
            assert row["shared_concepts"] == 1.0
    assert np.mean([row["cluster_nmi"] for row in rows]) > 0.95
    agreement = {
        (row["layer"], row["measure"]): row for row in result.tables["agreement"].to_pylist()
    }
    assert agreement[ALL, "s"]["spearman"] > 0.95
    assert agreement[ALL, "d"]["channels"] == len(rows)
    left_out = [note for note in result.notes if "not scorable" in note]
    assert len(left_out) == 2
    assert "conv2:7: dead channel" in left_out[0]
    files = PART.draw(dict(result.tables), tmp_path / "encoder")
    assert [file.name for file in files] == ["encoder.png", "encoder.svg", "encoder.pdf"]
    again = [file.read_bytes() for file in files]
    assert [f.read_bytes() for f in PART.draw(dict(result.tables), tmp_path / "encoder")] == again


def test_crops_are_embedded_once_and_an_encoder_without_words_leaves_d_out(
    context: Context, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = with_second(context, DULL)
    result = PART.compute(context)
    measures = {row["measure"] for row in result.tables["agreement"].to_pylist()}
    assert "d" not in measures
    assert {"s", "q", "log_psi"} <= measures
    assert any("dull has no text side" in note for note in result.notes)
    row = result.tables["channels"].to_pylist()[0]
    assert row["d_second"] is None
    assert row["shared_concepts"] is None
    assert row["concepts_first"]
    PART.draw(dict(result.tables), tmp_path / "encoder")

    def refuse(*args: Any) -> None:
        raise AssertionError("images read again")

    monkeypatch.setattr(embedding, "crop_and_resize", refuse)
    assert PART.compute(context).tables["channels"].equals(result.tables["channels"])


def test_cluster_agreement_is_scikit_learns() -> None:
    from psi_engine.validation.parts.encoder import _cluster_agreement

    random = np.random.default_rng(0)
    first, second = random.integers(0, 3, (2, 5, 12))
    found = _cluster_agreement(first, second)
    for a, b, value in zip(first, second, found, strict=True):
        assert value == pytest.approx(normalized_mutual_info_score(a, b))


def test_a_second_encoder_must_be_named_and_exist_and_be_another(context: Context) -> None:
    assert "give --second-encoder" in str(PART.needs(with_second(context, None)))
    with pytest.raises(EncoderError):
        PART.needs(with_second(context, "tests.validation.parts.test_encoder:missing"))
    with pytest.raises(InputError, match="the second encoder is the first"):
        PART.compute(with_second(context, "tests.toy:encoder"))
