"""Texts and images as directions, with or without the encoder."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import psi_engine as psi
from psi_engine.errors import EncoderError, InputError, RunFolderError
from psi_engine.retrieval import queries as module
from psi_engine.retrieval.queries import text_direction
from psi_engine.stored import write_score_inputs
from psi_engine.vocabulary import build_vocabulary
from tests import toy


def no_encoder(*_: object) -> None:
    pytest.fail("the encoder was loaded")


def test_a_concept_of_the_run_needs_no_encoder(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = psi.open_run(run)
    with monkeypatch.context() as patched:
        patched.setattr(module, "load_encoder", no_encoder)
        kept = text_direction(opened, " Red ")
    monkeypatch.setattr(module, "read_texts", without("red", module.read_texts))
    embedded = text_direction(opened, "red")
    # the same text, held against a vocabulary that lacks it
    assert torch.nn.functional.cosine_similarity(kept, embedded).item() > 0.99
    assert torch.allclose(kept.norm(dim=1), torch.ones(1))


def without(name: str, read: object) -> object:
    def less(folder: Path) -> object:
        texts, concepts = read(folder)  # type: ignore[operator]
        return texts, tuple("another" if x == name else x for x in concepts)

    return less


def test_a_changed_encoder_is_refused(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(toy.PixelEncoder, "fingerprint", "toy-2")
    with pytest.raises(RunFolderError, match="another encoder; got tests.toy:encoder toy-2"):
        text_direction(psi.open_run(run), "anything else")


def test_without_a_text_side_examples_and_images_remain(textless_run: Path, images: Path) -> None:
    opened = psi.open_run(textless_run)
    with pytest.raises(EncoderError, match="its encoder has no text side; got toy"):
        opened.search("red")
    assert len(opened.search(like="conv2:3", top=3).table) == 3
    assert len(opened.search(image=next(images.rglob("*.png")), top=3).table) == 3


def test_fixed_names_are_known_or_suggested(
    fixed_run: Path, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = psi.open_run(fixed_run)
    assert len(opened.search(image=next(images.rglob("*.png")), top=3).table) == 3
    monkeypatch.setattr(module, "load_encoder", no_encoder)
    found = opened.search("Lemon", top=4).table.to_pylist()
    assert [row["rank"] for row in found] == [1, 2, 3, 4]
    for said, suggested in (
        ("wolf", "such as grey wolf, red wolf, wolf spider"),
        ("lenon", "such as lemon$"),
        ("xyzzy", "one of its 5 concepts like grey wolf, red wolf, wolf spider"),
    ):
        with pytest.raises(InputError, match=f"fixed names only; got '{said}'; .*{suggested}"):
            opened.search(said)


def test_imported_embeddings_have_no_encoder_to_ask(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = psi.open_run(run)
    opened.manifest["config"]["encoder"] = module.IMPORTED
    with pytest.raises(EncoderError, match="its embeddings were imported; expected a query by"):
        opened.search("something new")
    assert len(opened.search("red").table) == 10


def test_what_all_concepts_share_says_nothing(copy: Path) -> None:
    opened = psi.open_run(copy)
    texts, _ = module.read_texts(copy)
    same = texts.embeddings[:1].expand(12, -1)
    twice = type(texts)(same, torch.arange(2).repeat_interleave(6), None, None)
    write_score_inputs(copy / "score_inputs.safetensors", None, twice, None, ["one", "two"])
    with pytest.raises(InputError, match="what all concepts of the run have in common"):
        text_direction(opened, "one")


def test_texts_go_through_the_templates_of_a_run(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []

    def encode(self: object, texts: list[str]) -> torch.Tensor:
        seen.extend(texts)
        return torch.eye(48)[: len(texts)]

    monkeypatch.setattr(toy.PixelEncoder, "encode_texts", encode)
    text_direction(psi.open_run(run), "umbrella")
    prompts = build_vocabulary(["umbrella"])
    expected = [text for text, i in zip(prompts.texts, prompts.concept_ids, strict=True) if i == 0]
    assert seen[-len(expected) :] == expected  # before them the probe of any encoder
