"""The parents that stand for coarse labels of Tiny-ImageNet."""

import json
from collections import Counter
from pathlib import Path

import pytest

FILE = Path(__file__).parents[2] / "benchmarks" / "tiny_imagenet_parents.json"


@pytest.fixture(scope="module")
def pairs():
    # As pairs: a dict would swallow a class named twice.
    return json.loads(FILE.read_text(encoding="utf-8"), object_pairs_hook=list)


def test_each_class_is_named_once(pairs, shared):
    file = shared / "data" / "tiny-imagenet" / "classes.json"
    names = [row["name"] for row in json.loads(file.read_text(encoding="utf-8"))]
    assert [name for name, _ in pairs] == names


def test_each_parent_has_at_least_two_classes_and_none_is_a_heap(pairs):
    members = Counter(parent for _, parent in pairs)
    assert sum(members.values()) == 200
    assert 25 <= len(members) <= 35
    assert min(members.values()) >= 2
    assert max(members.values()) <= 12
    assert not {name for name, _ in pairs} & set(members)
