"""Variants of a run: what is mined and embedded anew, what is not, and that it is right."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from psi_engine.inputs import Inputs, reopen
from psi_engine.pipeline import run
from psi_engine.stored import StoredRun, load_stored
from psi_engine.types import Boxes, ReceptiveField
from psi_engine.validation import variants as module
from psi_engine.validation.variants import Variant, make_variant, places_of, scaled, variants


@pytest.fixture(scope="module")
def inputs(toy_stored: StoredRun) -> Inputs:
    return reopen(toy_stored.run)


@pytest.fixture
def embedded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many crops each call embeds."""
    counts: list[int] = []
    original = module.embed_once

    def counting(
        folder: Path, key: str, source: Any, preprocess: Any, boxes: Boxes, *a: Any, **k: Any
    ) -> Path:
        counts.append(len(boxes.image_ids))
        return original(folder, key, source, preprocess, boxes, *a, **k)

    monkeypatch.setattr(module, "embed_once", counting)
    return counts


def test_every_variant_changes_one_thing(toy_stored: StoredRun) -> None:
    found, notes = variants(toy_stored.config)
    assert [v.name for v in found] == ["top-k-24", "sites-all", "patch-0.75", "patch-1.25"]
    assert not notes
    own = toy_stored.config.mine
    assert found[0].mine == replace(own, top_k=24)
    assert found[1].mine == replace(own, sites="all")
    small = replace(toy_stored.config, mine=replace(own, pool=20))
    found, notes = variants(small)
    assert "top-k-24" not in [v.name for v in found]
    assert notes == ["K = 24 is left out: the pool holds 20 patches"]


@pytest.mark.parametrize("name", ["top-k-24", "sites-all"])
def test_mined_anew_it_is_the_run_with_that_setting(
    toy_stored: StoredRun, inputs: Inputs, tmp_path: Path, embedded: list[int], name: str
) -> None:
    """The same scores as a whole run made for it, and only new crops were embedded."""
    variant = next(v for v in variants(toy_stored.config)[0] if v.name == name)
    made = make_variant(toy_stored, inputs, variant, tmp_path / "variant")
    whole = load_stored(
        run(replace(toy_stored.config, mine=variant.mine, out=str(tmp_path / "whole"))).path
    )
    crops = len(next(iter(whole.layers.values())).all_embeddings)
    assert 0 < embedded[0] < 0.8 * crops
    for layer in whole.layers:
        assert torch.equal(made.layers[layer].embeddings, whole.layers[layer].embeddings)
        assert torch.equal(made.layers[layer].pool, whole.layers[layer].pool)
        one, other = made.score(layer), whole.score(layer)
        assert torch.equal(one.log_psi.nan_to_num(7), other.log_psi.nan_to_num(7))


def test_other_crops_are_those_of_a_run_with_that_patch(
    toy_stored: StoredRun, inputs: Inputs, tmp_path: Path, embedded: list[int]
) -> None:
    """16 pixels × 0.75 are 12."""
    made = make_variant(
        toy_stored, inputs, Variant("small", "patch", "× 0.75", scale=0.75), tmp_path
    )
    patches = replace(toy_stored.config.patches, patch=12)
    whole = load_stored(
        run(replace(toy_stored.config, patches=patches, out=str(tmp_path / "whole"))).path
    )
    for layer in whole.layers:
        assert torch.equal(made.layers[layer].embeddings, whole.layers[layer].embeddings)
        assert made.layers[layer].sites is toy_stored.layers[layer].sites


def test_a_second_call_mines_and_embeds_nothing(
    toy_stored: StoredRun, inputs: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    variant = variants(toy_stored.config)[0][0]
    first = make_variant(toy_stored, inputs, variant, tmp_path)

    def never(*a: object, **k: object) -> None:
        raise AssertionError("done before")

    monkeypatch.setattr(module, "mine", never)
    monkeypatch.setattr("psi_engine.embedding._blocks", lambda *a, **k: iter(()))
    again = make_variant(toy_stored, inputs, variant, tmp_path)
    for layer in first.layers:
        assert torch.equal(first.layers[layer].embeddings, again.layers[layer].embeddings)
    with pytest.raises(AssertionError, match="done before"):  # other settings are other work
        make_variant(
            toy_stored, inputs, replace(variant, mine=replace(variant.mine, top_k=23)), tmp_path
        )


def test_nothing_is_embedded_where_every_box_is_known(
    toy_stored: StoredRun, inputs: Inputs, tmp_path: Path, embedded: list[int]
) -> None:
    made = make_variant(toy_stored, inputs, Variant("same", "patch", "× 1"), tmp_path)
    assert embedded == []
    assert torch.equal(made.layers["conv2"].embeddings, toy_stored.layers["conv2"].embeddings)


def test_boxes_are_found_by_image_and_corners() -> None:
    def boxes(*rows: tuple[int, int]) -> Boxes:
        corners = torch.tensor([[x, 0, x + 4, 4] for _, x in rows]).reshape(-1, 4)
        return Boxes(torch.tensor([i for i, _ in rows], dtype=torch.int64), corners)

    held = boxes((1, 0), (1, 3), (2, 0))
    assert places_of(boxes((2, 0), (1, 2), (1, 3), (3, 0)), held).tolist() == [2, -1, 1, -1]
    assert places_of(boxes(), held).tolist() == []
    assert places_of(boxes((1, 0)), boxes()).tolist() == [-1]


def test_a_field_beyond_the_image_shrinks_from_the_image_on() -> None:
    field = ReceptiveField((400.0, 100.0), (32.0, 32.0), (0.5, 0.5), "graph")
    assert scaled(field, 0.75, 224).size == (168.0, 75.0)
    assert scaled(field, 1.0, 224) is field
