"""Finished runs of the toy world, shared by the tests of search; nobody writes into them."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

import psi_engine as psi
from tests import toy


def finished(folder: Path, images: Path, **changes: Any) -> Path:
    options = toy.RUN_OPTIONS | {"replicates": 10, "data": str(images), "out": str(folder)}
    psi.run(psi.RunConfig.from_options(**options | changes))
    return folder


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy.write_images(tmp_path_factory.mktemp("search-images"), 36)


@pytest.fixture(scope="session")
def run(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return finished(tmp_path_factory.mktemp("search") / "one", images)


@pytest.fixture(scope="session")
def second_run(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return finished(tmp_path_factory.mktemp("search") / "two", images, layers=["conv1"])


@pytest.fixture(scope="session")
def textless_run(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("search") / "textless"
    return finished(folder, images, encoder="tests.toy:textless")


@pytest.fixture(scope="session")
def fixed_run(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    names = tmp_path_factory.mktemp("names") / "names.txt"
    names.write_text("\n".join(("grey wolf", "red wolf", "wolf spider", "lemon", "orange")))
    folder = tmp_path_factory.mktemp("search") / "fixed"
    return finished(
        folder, images, encoder="classifier:tests.toy:model", concepts=str(names), layers=["head"]
    )


@pytest.fixture
def copy(run: Path, tmp_path: Path) -> Path:
    """A run of one's own, without a search index."""
    shutil.copytree(run, tmp_path / "run", ignore=shutil.ignore_patterns("search"))
    return tmp_path / "run"
