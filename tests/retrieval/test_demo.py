"""Search held against the demo's planted units, whose classes are known."""

from __future__ import annotations

import numpy as np
import pytest

import psi_engine as psi
from psi_engine.demo import RUN_OPTIONS, planted_classes
from psi_engine.demo.world import CLASS_NAMES
from psi_engine.retrieval.search import Found

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> psi.Run:
    folder = tmp_path_factory.mktemp("demo") / "run"
    options = dict(RUN_OPTIONS) | {
        "out": str(folder),
        "replicates": 20,
        "layers": ["stage4", "planted"],
    }
    return psi.run(psi.RunConfig.from_options(**options))


def right(found: Found, label: int) -> list[bool]:
    planted = planted_classes()
    return [label in planted[channel] for channel in found.table["channel"].to_pylist()]


def test_the_name_of_a_class_finds_the_units_it_was_planted_in(demo: psi.Run) -> None:
    """The first unit of each of the 32 names is right; of as many as there are, most."""
    first, shares = [], []
    for label, name in enumerate(CLASS_NAMES):
        count = sum(label in classes for classes in planted_classes())
        hits = right(demo.search(name, top=count, per="channel", layers=["planted"]), label)
        first.append(hits[0])
        shares.append(np.mean(hits))
    assert all(first)
    assert np.mean(shares) > 0.85


def test_units_of_one_class_find_each_other(demo: psi.Run) -> None:
    hits = []
    for channel, classes in enumerate(planted_classes()):
        if len(classes) == 1:
            found = demo.search(like=f"planted:{channel}", top=3, per="channel", layers=["planted"])
            hits += right(found, classes[0])
    assert np.mean(hits) > 0.85
