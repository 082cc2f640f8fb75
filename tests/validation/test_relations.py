"""Coarse mappings: reading, matching to the data, and drawing classes by them."""

from __future__ import annotations

import json
from itertools import combinations
from pathlib import Path

import pytest
import torch

from psi_engine.errors import InputError
from psi_engine.validation.relations import coarse_labels, draw_classes, parents_of, read_parents

PARENTS = {0: ("a", "x"), 1: ("a", "y"), 2: ("b", "x"), 3: ("b", "y"), 4: ("c",), 5: ("c",)}


def test_json_and_csv_say_the_same(tmp_path: Path) -> None:
    (tmp_path / "m.json").write_text(json.dumps({"cat": "pet", "tiger": ["pet", "wild"]}))
    (tmp_path / "m.csv").write_text("cat, pet\ntiger,pet,wild\n\n")
    expected = {"cat": ("pet",), "tiger": ("pet", "wild")}
    assert read_parents(tmp_path / "m.json") == read_parents(tmp_path / "m.csv") == expected


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("m.json", "[1]"),
        ("m.json", "{"),
        ("m.json", '{"cat": 3}'),
        ("m.json", '{"cat": []}'),
        ("m.json", "{}"),
        ("m.csv", "cat\n"),
        ("m.csv", "cat,\n"),
        ("m.csv", ""),
    ],
)
def test_other_files_are_refused(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match="coarse mapping cannot be read"):
        read_parents(tmp_path / name)
    with pytest.raises(InputError, match="not there"):
        read_parents(tmp_path / "no.json")


def test_classes_are_found_by_name_then_by_label() -> None:
    mapping = {"cat": ("pet",), "1": ("pet",), "2": ("wild",)}
    found = parents_of(mapping, ("cat", "dog", "tiger", "newt"), [0, 1, 2, 3])
    assert found == {0: ("pet",), 1: ("pet",), 2: ("wild",)}
    assert parents_of({"7": ("pet",), "8": ("pet",)}, None, [7, 8]) == {7: ("pet",), 8: ("pet",)}


def test_a_mapping_must_name_classes_and_group_some() -> None:
    with pytest.raises(InputError, match=r"names no class.*got 'chat'.*such as 'cat'"):
        parents_of({"chat": ("pet",)}, ("cat", "dog"), [0, 1])
    with pytest.raises(InputError, match="no two classes"):
        parents_of({"cat": ("pet",), "dog": ("friend",)}, ("cat", "dog"), [0, 1])


def test_coarse_labels_merge_by_the_first_parent_only() -> None:
    labels = torch.tensor([[0, 1, 2, -1], [4, 5, 6, 7]])
    coarse = coarse_labels(labels, PARENTS)
    assert coarse[0, 0] == coarse[0, 1] != coarse[0, 2]
    assert coarse[0, 3] == -1
    assert coarse[1, 0] == coarse[1, 1]
    assert len({*coarse.flatten().tolist()}) == 6  # a, b, c, 6 and 7 alone, unknown


def test_drawn_classes_share_a_parent_or_none() -> None:
    seen = set()
    for key in range(60):
        related = draw_classes(range(6), 2, True, PARENTS, key)
        assert related is not None
        assert set(PARENTS[related[0]]) & set(PARENTS[related[1]])
        unrelated = draw_classes(range(6), 3, False, PARENTS, key)
        assert unrelated is not None
        for one, other in combinations(unrelated, 2):
            assert not set(PARENTS[one]) & set(PARENTS[other])
        assert unrelated == draw_classes(range(6), 3, False, PARENTS, key)
        seen.add((related, unrelated))
    assert len(seen) > 10
    assert draw_classes(range(6), 3, True, PARENTS, 0) is None
    assert draw_classes(range(6), 4, False, PARENTS, 0) is None
