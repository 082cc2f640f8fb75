"""What the pages take for granted: a demo run, a folder of pictures."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from types import MappingProxyType

import pytest
from typer.testing import CliRunner

from psi_engine import demo
from psi_engine.cli import app
from tests import toy
from tests.docs.pages import titled

SMALL = MappingProxyType(
    dict(demo.RUN_OPTIONS)
    | {
        "channels": ("stage4:0-5", "planted:0-3,64-67,86,128-131"),
        "layers": ("stage4", "planted"),
        "max_images": 240,
        "top_k": 20,
        "replicates": 60,
        "pool": 500,
    }
)
"""The demo, made small: every command of the pages works on it, its figures are not the pages'."""


@pytest.fixture(scope="session")
def demo_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the small demo, as ``psi-engine demo`` writes it."""
    out = tmp_path_factory.mktemp("demo") / "run"
    with pytest.MonkeyPatch.context() as patch:
        use_small_demo(patch)
        done = CliRunner().invoke(app, ["demo", "--no-report", "--out", str(out)])
    assert done.exit_code == 0, done.output
    return out


def use_small_demo(patch: pytest.MonkeyPatch) -> None:
    """Let ``psi-engine demo`` make the small one; the truth it closes with needs all units."""
    patch.setattr(demo, "RUN_OPTIONS", SMALL)
    patch.setattr(demo, "judge", lambda run: {"auroc": {}, "accuracy": {}})


class Workshop:
    """The working folder of one page, with the files that titles name on any page in it."""

    def __init__(self, folder: Path, demo_run: Path) -> None:
        self.folder, self._demo_run = folder, demo_run
        for name, block in titled().items():
            (folder / name).write_text(block.text, encoding="utf-8")

    def provide(self, name: str) -> None:
        """Put what a page is given into its place, unless it is there."""
        place = self.folder / name
        if place.exists():
            return
        if name == "photos":
            toy.write_images(place, 60)
        elif name.startswith("runs/"):
            shutil.copytree(self._demo_run, place)
        else:
            raise ValueError(f"nobody knows how to give {name!r}")


@pytest.fixture
def workshop(tmp_path: Path, demo_run: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Workshop]:
    """An empty working folder; what was imported from it is forgotten at the end."""
    import sys

    monkeypatch.chdir(tmp_path)
    use_small_demo(monkeypatch)
    yield Workshop(tmp_path, demo_run)
    for name in titled():
        sys.modules.pop(Path(name).stem, None)
