"""The look of figures: both files, the same bytes again, nothing left behind in matplotlib."""

from __future__ import annotations

from pathlib import Path

import matplotlib

from psi_engine.report.plots.style import COLOURS, colour_of, panels, save, styled, title


def drawn(stem: Path) -> list[Path]:
    with styled():
        made, axes = panels(1, 2)
        axes[0, 0].plot([0, 1], [1, 0], color=COLOURS[0])
        title(axes[0, 1], "Ŝ against chance")
    return save(made, stem)


def test_two_files_without_dates(tmp_path: Path) -> None:
    before = {name: matplotlib.rcParams[name] for name in ("font.size", "svg.fonttype")}
    files = drawn(tmp_path / "some.name")
    assert [file.name for file in files] == ["some.name.png", "some.name.svg"]
    held = [file.read_bytes() for file in files]
    assert [file.read_bytes() for file in drawn(tmp_path / "some.name")] == held
    assert b"<dc:date>" not in held[1]
    assert "Ŝ against chance" in held[1].decode()  # text stays text
    assert {name: matplotlib.rcParams[name] for name in before} == before
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_colours_are_given_in_order_and_start_over() -> None:
    names = [str(number) for number in range(len(COLOURS) + 1)]
    given = colour_of(names)
    assert list(given.values()) == [*COLOURS, COLOURS[0]]
    assert len(set(COLOURS)) == len(COLOURS)
