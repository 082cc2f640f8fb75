"""The site builds without a warning, and is read and searched from disk without a network."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs.pages import PROJECT


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "-d", str(folder)],
        cwd=PROJECT,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.slow
def test_the_site_is_whole_and_asks_nothing_of_the_network(site: Path) -> None:
    library = (site / "reference/api.html").read_text(encoding="utf-8")
    assert 'id="psi_engine.scores.score.score"' in library or 'id="psi_engine.score"' in library
    assert "<code>--layers" in (site / "reference/cli.html").read_text(encoding="utf-8")
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("no chromium to read the site in")
    from playwright.sync_api import sync_playwright

    faults: list[str] = []
    with sync_playwright() as player:
        browser = player.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_context(viewport={"width": 390, "height": 800}).new_page()
        page.on("request", lambda request: faults.append(request.url))
        page.on("pageerror", lambda error: faults.append(str(error)))
        for file in sorted(site.rglob("*.html")):
            page.goto(file.as_uri(), wait_until="load")
            wider = "document.documentElement.scrollWidth > document.documentElement.clientWidth"
            assert not page.evaluate(wider), f"{file.name} is wider than a phone"
        page.set_viewport_size({"width": 1280, "height": 900})
        page.goto((site / "howto/model.html").as_uri())
        page.click(".md-search__input")
        page.keyboard.type("silhouette", delay=20)
        page.wait_for_selector(".md-search-result__link", timeout=30_000)
        browser.close()
    local = ("file:", "data:", "blob:")
    assert [url for url in faults if not url.startswith(local)] == []
