from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from psi_engine.errors import InputError
from psi_engine.names import clean_class_names
from psi_engine.vocabulary import (
    TEMPLATES,
    build_vocabulary,
    read_concepts,
    unrelated_bank,
    with_article,
)


def folded(names: tuple[str, ...]) -> set[str]:
    return {name.casefold() for name in names}


@pytest.fixture(scope="module")
def imagenet() -> set[str]:
    from torchvision.models import ResNet50_Weights

    return {name.casefold() for name in ResNet50_Weights.DEFAULT.meta["categories"]}


@pytest.fixture(scope="module")
def tiny_imagenet(shared: Path) -> list[str]:
    classes = json.loads((shared / "data/tiny-imagenet/classes.json").read_text())
    return [row["synonyms"] for row in classes]


def test_there_are_67_generic_concepts_and_none_twice() -> None:
    generic = build_vocabulary().concepts
    assert len(generic) == 67
    assert len(folded(generic)) == 67


def test_the_bank_is_three_times_the_vocabulary_and_none_twice() -> None:
    bank = unrelated_bank().concepts
    assert len(bank) >= 3 * 267
    assert len(folded(bank)) == len(bank)


def test_shipped_concepts_are_no_imagenet_classes(imagenet: set[str]) -> None:
    generic, bank = folded(build_vocabulary().concepts), folded(unrelated_bank().concepts)
    assert not generic & bank
    assert not (generic | bank) & imagenet


def test_shipped_concepts_are_no_synonyms_of_tiny_imagenet(tiny_imagenet: list[str]) -> None:
    synonyms = {part.strip().casefold() for names in tiny_imagenet for part in names.split(",")}
    shipped = folded(build_vocabulary().concepts) | folded(unrelated_bank().concepts)
    assert not shipped & synonyms


def test_tiny_imagenet_has_the_papers_1602_prompts(tiny_imagenet: list[str]) -> None:
    prompts = build_vocabulary(tiny_imagenet)
    assert len(prompts.concepts) == 267
    assert len(prompts.texts) == len(set(prompts.texts)) == 1602
    assert prompts.concepts[:2] == ("goldfish", "European fire salamander")
    assert prompts.source == "200 class names, 67 generic concepts, 6 templates"


def test_prompts_stand_concept_by_concept() -> None:
    prompts = build_vocabulary(["red_fox", "owl"])
    assert prompts.concept_ids.dtype == torch.int64
    assert prompts.concept_ids.tolist() == [c for c in range(69) for _ in range(6)]
    assert prompts.texts[:6] == tuple(template.format("a red fox") for template in TEMPLATES)
    assert all("an owl" in text for text in prompts.texts[6:12])


def test_templates_are_six_and_hold_one_concept_each() -> None:
    assert len(set(TEMPLATES)) == 6
    assert all(template.count("{}") == 1 for template in TEMPLATES)


def test_a_class_that_is_a_generic_concept_is_kept_once_and_said() -> None:
    prompts = build_vocabulary(["Cloudy Sky", "owl"])
    assert len(prompts.concepts) == 68
    assert prompts.concepts[0] == "Cloudy Sky"
    assert "1 left out, being class names: cloudy sky" in prompts.source


def test_the_bank_leaves_out_what_the_vocabulary_names() -> None:
    whole, less = unrelated_bank(), unrelated_bank(exclude=["Habeas Corpus petition", "owl"])
    assert set(whole.concepts) - set(less.concepts) == {"habeas corpus petition"}
    assert less.concept_ids.max() == len(less.concepts) - 1
    assert len(less.texts) == 6 * len(less.concepts)


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["goldfish, Carassius auratus"], ("goldfish",)),
        (["grey__wolf", "  tea  pot "], ("grey wolf", "tea pot")),
        (["crane", "crane, bird"], ("crane", "crane (bird)")),
        (["maillot", "maillot"], ("maillot", "maillot (2)")),
        (["Cardigan", "cardigan"], ("Cardigan", "cardigan (2)")),
        (["a", "a (2)", "a"], ("a", "a (2)", "a (3)")),
    ],
)
def test_class_names_become_distinct_words(names: list[str], expected: tuple[str, ...]) -> None:
    assert clean_class_names(names) == expected


def test_a_class_without_a_name_is_refused() -> None:
    with pytest.raises(InputError, match="a class has no name; got ' ' for class 1"):
        build_vocabulary(["owl", " "])


@pytest.mark.parametrize(
    "phrase",
    [
        "a goldfish", "an acorn", "an hourglass", "a unicycle", "an umbrella", "an iPod",
        "a CD player", "an MP3 player", "an X-ray", "a European fire salamander", "a T-shirt",
        "an unidentified mark", "a one-way street", "an abacus", "a lens", "a walrus",
        "an oil press", "sunglasses", "binoculars", "rows of windows", "a pair of eyes",
    ],
)  # fmt: skip
def test_articles(phrase: str) -> None:
    head, _, rest = phrase.partition(" ")
    assert with_article(rest if head in ("a", "an") else phrase) == phrase


@pytest.mark.parametrize("phrase", ["a red fox", "An owl", "the moon", "two boats"])
def test_no_second_article(phrase: str) -> None:
    assert with_article(phrase) == phrase


def test_a_users_file_replaces_the_vocabulary(tmp_path: Path) -> None:
    file = tmp_path / "mine.txt"
    file.write_text("\ufeff# mine\n\n striped   fur \r\nwet nose\n", encoding="utf-8")
    prompts = build_vocabulary(["owl"], file)
    assert prompts.concepts == ("striped fur", "wet nose")
    assert len(prompts.texts) == 12
    assert prompts.source == "concepts file mine.txt, 6 templates"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "too few concepts .*got 0; expected at least 2"),
        (b"# only\n# comments\n\n", "too few concepts .*got 0"),
        (b"owl\n", "too few concepts .*got 1"),
        (b"owl\nfox\nOwl\n", "stands twice .*got 'Owl'"),
        (b"\xff\xfe\x00owl", "is not text"),
    ],
)
def test_a_bad_file_of_concepts_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    file = tmp_path / "bad.txt"
    file.write_bytes(content)
    with pytest.raises(InputError, match=message):
        read_concepts(file)


def test_a_missing_file_of_concepts_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no file of concepts at .*check the path"):
        build_vocabulary(None, tmp_path / "none.txt")
