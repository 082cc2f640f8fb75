"""The tables and figures of speed, made from the tracked results.

    python -m benchmarks.tables [--check]

Writes what stands between the marks of README.md and three pages of docs, and the figures
``docs/assets/speed-*.svg``. What has no results yet says "not measured". ``--check`` writes
nothing, says what differs, and ends with 1 if anything does.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import details, figures
from benchmarks.overview import overview
from benchmarks.pages import ABSENT, Result, blocks, filled, origin

PROJECT = Path(__file__).parents[1]
RESULTS = PROJECT / "benchmarks/results"
PAGES = ("README.md", "docs/speed.md", "docs/calibration.md", "docs/scaling.md")
FIGURES = "docs/assets"
NAMES = (
    "scoring", "solver", "replicates", "curves", "peers", "mining", "stages", "kills", "search",
    "stability", "scaling", "gpu",
)  # fmt: skip
POSITIONAL = {"stages": " RUN"}
"""What a benchmark must be told beside its options."""


def read(folder: Path) -> dict[str, Result]:
    """The tracked results, by benchmark; what ``gpu`` did on a CPU is no measurement of a GPU."""
    held: dict[str, Result] = {}
    for name in NAMES:
        path = folder / f"{name}.json"
        held[name] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
    gpu = held["gpu"]
    if gpu and (gpu["facts"]["settings"]["device"] != "cuda" or not gpu["facts"]["gpu"]):
        held["gpu"] = None
    return held


def made(held: Mapping[str, Result]) -> dict[str, Callable[[], str]]:
    """What makes each block, by its name."""
    tables: dict[str, tuple[str, Callable[[Mapping[str, Any]], str]]] = {
        "scoring": ("scoring", details.scoring),
        "agreement": ("scoring", details.agreement),
        "solver": ("solver", details.solver),
        "replicates": ("replicates", details.replicates),
        "mining": ("mining", details.mining),
        "peers": ("peers", details.peers),
        "search": ("search", details.search),
        "curves": ("curves", details.curves),
        "stages": ("stages", details.stages),
        "kills": ("kills", details.kills),
        "stability": ("stability", details.stability),
        "constants": ("scaling", details.scaling),
    }
    makers: dict[str, Callable[[], str]] = {
        name: partial(_told, held[source], name, source, table)
        for name, (source, table) in tables.items()
    }
    gpu = held["gpu"]
    return makers | {
        "overview": partial(overview, held),
        "gpu": lambda: details.gpu(gpu) + (origin(gpu["facts"]) if gpu else ""),
        "profiles": partial(details.profiles, gpu),
    }


def _told(
    result: Result, block: str, source: str, table: Callable[[Mapping[str, Any]], str]
) -> str:
    """A table with its figure and its origin, or what to run for one."""
    if result is None:
        command = f"python -m benchmarks.{source}{POSITIONAL.get(source, '')}"
        return f"\n*{ABSENT}: `{command} --out benchmarks/results` does.*\n"
    shown = figures.SHOWN.get(block)
    picture = f"\n![{shown[0]}](assets/speed-{shown[1]}.svg)\n" if shown else ""
    return table(result) + picture + origin(result["facts"])


def differing(project: Path, results: Path) -> list[str]:
    """Blocks and figures that are not what the results make, as ``page: block``."""
    held = read(results)
    makers, found = made(held), []
    for page in PAGES:
        there = blocks((project / page).read_text(encoding="utf-8"))
        found += [f"{page}: {name}" for name, text in there.items() if makers[name]() != text]
    for name, data in figures.wanted(held).items():
        path = project / FIGURES / f"speed-{name}.svg"
        if not path.is_file() or figures.data_of(path) != data:
            found.append(f"{FIGURES}/{path.name}")
    return found


def write(project: Path, results: Path) -> None:
    """Write every block and every figure that differs."""
    held = read(results)
    for page in PAGES:
        path = project / page
        path.write_text(filled(path.read_text(encoding="utf-8"), made(held)), encoding="utf-8")
    for name, data in figures.wanted(held).items():
        path = project / FIGURES / f"speed-{name}.svg"
        if not path.is_file() or figures.data_of(path) != data:
            figures.draw(name, data, path)


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the tables and figures, or compare them; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing, say what differs")
    options = parser.parse_args(arguments)
    found = differing(PROJECT, RESULTS)
    for line in found:
        print(line + (" differs from the results" if options.check else ": written"))
    if options.check:
        return bool(found)
    write(PROJECT, RESULTS)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
