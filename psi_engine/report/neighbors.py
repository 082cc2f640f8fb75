"""What a search found, as plain data and on screen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
from rich import box
from rich.console import Console
from rich.table import Table


def summarise(query: str, table: pa.Table, notes: Sequence[str]) -> dict[str, Any]:
    """Gather what is shown of a search, JSON-able, with the keys ``query, found, notes``."""
    return {"query": query, "found": table.to_pylist(), "notes": list(notes)}


def show(console: Console, summary: Mapping[str, Any]) -> None:
    """Draw the neurons, nearest first; the run where there are several, the example where any."""
    rows = summary["found"]
    if not rows:
        console.print("nothing found: no channel fits the layers and the verdict asked for")
        return
    several = len({row["run"] for row in rows}) > 1
    examples = rows[0]["by"] is not None
    # the concepts get what the others leave
    table = Table(
        box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False, expand=True
    )
    table.add_column("", justify="right", no_wrap=True)
    if several:
        table.add_column("run", no_wrap=True)
    table.add_column("channel", no_wrap=True)
    for name in ("cluster", "cos", "PSI"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("verdict", no_wrap=True)
    if examples:
        table.add_column("like", no_wrap=True)
    table.add_column("concepts", no_wrap=True, overflow="ellipsis", ratio=1)
    for row in rows:
        cells = [str(row["rank"])] + [row["run"]] * several
        cells += [f"{row['layer']}:{row['channel']}", str(row["cluster"])]
        cells += [_number(row["similarity"]), _number(row["psi"]), row["verdict"]]
        cells += [row["by"]] * examples
        named = [concept["concept"] for concept in row["concepts"] or ()]
        table.add_row(*cells, ", ".join(named) or "–")
    console.print(table)


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"
