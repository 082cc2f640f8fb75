"""The README's picture: a channel of the demo's report, as the browser shows it.

Run ``psi-engine demo``, then ``python docs/picture.py``; it writes ``docs/assets/report.webp``.
"""

from __future__ import annotations

import io
import shutil
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

CHANNEL = "planted:86"
SIZE = {"width": 1280, "height": 860}
PICTURE = Path(__file__).parent / "assets/report.webp"


def take(report: Path) -> bytes:
    """PNG of the channel's page in a report that lies at ``report``."""
    with sync_playwright() as player:
        browser = player.chromium.launch(executable_path=shutil.which("chromium"))
        page = browser.new_context(viewport=SIZE, offline=True).new_page()
        page.goto(f"{report.resolve().as_uri()}/index.html#{CHANNEL}")
        page.wait_for_function("[...document.images].every((image) => image.complete)")
        page.wait_for_timeout(1000)  # sprites are backgrounds, which nothing tells of
        return page.screenshot()


if __name__ == "__main__":
    Image.open(io.BytesIO(take(Path("runs/demo/report")))).save(PICTURE, quality=80, method=6)
