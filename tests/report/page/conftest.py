"""A toy run with a report, and a browser, once for all tests of the page."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from psi_engine.artifacts import Run, open_run
from psi_engine.config import RunConfig
from psi_engine.pipeline import run as run_pipeline
from psi_engine.report_run import report
from tests.toy import RUN_OPTIONS, write_images


@pytest.fixture(scope="session")
def toy_run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A finished run of the toy world."""
    home = tmp_path_factory.mktemp("page")
    images = write_images(home / "images", 90)
    options = RUN_OPTIONS | {"data": str(images), "out": str(home / "run")}
    return run_pipeline(RunConfig.from_options(**options))


@pytest.fixture(scope="session")
def toy_report(toy_run: Run) -> Path:
    """Folder of the toy run's report."""
    return report(toy_run.path).index.parent


@pytest.fixture(scope="session")
def chromium() -> Iterator[Any]:
    """A real browser; skipped where there is none."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    found = (shutil.which(name) for name in ("chromium", "chromium-browser", "google-chrome"))
    path = next((name for name in found if name), None)
    if path is None:
        pytest.skip("no chromium, chromium-browser or google-chrome on PATH")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def copied(toy_run: Run, tmp_path: Path) -> Run:
    """A copy of the toy run that a test may change."""
    ignored = shutil.ignore_patterns("report", "*.lock")
    return open_run(shutil.copytree(toy_run.path, tmp_path / "run", ignore=ignored))
