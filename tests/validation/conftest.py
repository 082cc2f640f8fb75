"""One finished toy run for every test of a part: real enough to score, small enough to wait for."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from psi_engine.config import RunConfig
from psi_engine.pipeline import run
from psi_engine.stored import StoredRun, load_stored
from psi_engine.validation.part import Context, Options
from tests import toy


@pytest.fixture(scope="session")
def toy_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("toy-run")
    config = RunConfig.from_options(
        model="tests.toy:model", layers=["conv1", "conv2"], encoder="tests.toy:encoder",
        data=str(toy.write_images(home / "images", 90)), patch=16, top_k=12, bottom_k=12,
        pool=400, replicates=60, subsamples=0, device="cpu", out=str(home / "run"),
    )  # fmt: skip
    return run(config).path


@pytest.fixture(scope="session")
def toy_stored(toy_folder: Path) -> StoredRun:
    return load_stored(toy_folder)


@pytest.fixture
def toy_copy(toy_folder: Path, tmp_path: Path) -> Path:
    """A copy that a test may write to."""
    return Path(shutil.copytree(toy_folder, tmp_path / "run"))


@pytest.fixture
def context(toy_stored: StoredRun, tmp_path: Path) -> Context:
    options = Options(bootstrap=60, channel_replicates=10, null_channels=20)
    return Context(toy_stored, options, tmp_path / "part")
