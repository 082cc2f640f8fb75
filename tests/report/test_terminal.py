"""What the progress of a run looks like in terminals of several widths."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from psi_engine.report.terminal import ProgressScreen, show_summary
from psi_engine.types import VERDICTS

NOTE = "the model is the bottleneck (15% waiting for images)"


def shown(width: int) -> list[str]:
    """The lines of the bars, as they stand at the end."""
    console = Console(file=io.StringIO(), width=width)
    screen = ProgressScreen(console, quiet=False)
    with screen:
        screen("mining", 96, 12501)
        screen.note("mining", NOTE)
        screen("scoring layer3.2.conv1 (3/12): s against the null neighborhood", 480, 1000)
        screen("embedding", 125000, 125001)
        task = screen._bars.tasks[0]
        task.finished_speed = 19.4
        screen._bars.start = lambda: None  # type: ignore[method-assign]
        with console.capture() as captured:
            console.print(screen._bars.get_renderable())
    return [line.rstrip() for line in captured.get().splitlines()]


@pytest.mark.parametrize("width", [60, 80, 140])
def test_figures_are_never_cut(width: int) -> None:
    lines = shown(width)
    assert all(len(line) <= width for line in lines)
    mining, scoring, embedding, note = lines
    for part in ("mining", "96/12501", "19/s", "0:00:0", "-:--:--"):
        assert part in mining
    assert "480/1000" in scoring
    assert "125000/125001" in embedding
    assert note[:-1] in f"mining: {NOTE}"
    assert note.startswith("mining: the model is the bottleneck")


def test_names_are_whole_where_there_is_room() -> None:
    assert "s against the null neighborhood" in shown(140)[1]
    assert "…" in shown(60)[1]


@pytest.mark.parametrize("layers", [["a"], ["a", "b"]])
def test_what_the_false_discovery_rate_holds_for_is_said(layers: list[str]) -> None:
    counts = {"channels": 3, "median_log_psi": None, **dict.fromkeys(VERDICTS, 1)}
    summary = {
        "layers": [{"layer": name, **counts} for name in layers],
        "top": [],
        "notes": [],
        "seconds": {},
    }
    console = Console(file=io.StringIO(), width=80)
    with console.capture() as captured:
        show_summary(console, summary)
    assert ("controlled within each layer" in captured.get()) == (len(layers) > 1)
