"""The look of figures: three files, the same bytes again, nothing left behind in matplotlib."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import matplotlib
import pytest

from psi_engine.report.plots.style import COLOURS, colour_of, panels, save, styled, title


def drawn(stem: Path) -> list[Path]:
    with styled():
        made, axes = panels(1, 2)
        axes[0, 0].plot([0, 1], [1, 0], color=COLOURS[0])
        title(axes[0, 1], "Ŝ against chance")
    return save(made, stem)


def test_three_files_without_dates(tmp_path: Path) -> None:
    before = {name: matplotlib.rcParams[name] for name in ("font.size", "svg.fonttype")}
    files = drawn(tmp_path / "some.name")
    assert [file.name for file in files] == [
        "some.name.png",
        "some.name.svg",
        "some.name.pdf",
    ]
    held = [file.read_bytes() for file in files]
    assert [file.read_bytes() for file in drawn(tmp_path / "some.name")] == held
    assert b"<dc:date>" not in held[1]
    assert re.search(rb"/(CreationDate|Producer|Creator)", held[2]) is None
    assert "Ŝ against chance" in held[1].decode()  # text stays text
    assert {name: matplotlib.rcParams[name] for name in before} == before
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_the_pdf_is_vectors_with_embedded_truetype(tmp_path: Path) -> None:
    pdf = drawn(tmp_path / "a")[2].read_bytes()
    assert pdf.startswith(b"%PDF-")
    assert b"/FontFile2" in pdf  # a TrueType font program is inside
    assert b"/Type3" not in pdf
    assert b"/Subtype /Image" not in pdf


@pytest.mark.slow
def test_every_process_writes_the_same_bytes(tmp_path: Path) -> None:
    """What Python hashes differs from process to process; fonts are named by hashes."""
    held = []
    for seed in ("1", "2"):
        folder = tmp_path / seed
        folder.mkdir()
        code = (
            "from pathlib import Path; from tests.report.plots.test_style import drawn; "
            f"drawn(Path({str(folder)!r}) / 'a')"
        )
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        subprocess.run([sys.executable, "-c", code], check=True, env=environment)
        held.append({path.name: path.read_bytes() for path in folder.iterdir()})
    assert len(held[0]) == 3
    assert held[0] == held[1]


def test_colours_are_given_in_order_and_start_over() -> None:
    names = [str(number) for number in range(len(COLOURS) + 1)]
    given = colour_of(names)
    assert list(given.values()) == [*COLOURS, COLOURS[0]]
    assert len(set(COLOURS)) == len(COLOURS)
