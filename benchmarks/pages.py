"""Pages that hold tables made from results: marked blocks, Markdown, where it was measured."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

ABSENT = "not measured"

Result = Mapping[str, Any] | None
"""``facts`` and ``rows`` of one file; None where there is none."""

_BLOCK = re.compile(r"(<!-- begin (\S+) -->\n)(.*?)(<!-- end -->)", re.DOTALL)


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def filled(text: str, made: Mapping[str, Callable[[], str]]) -> str:
    """A page with every block made anew; a block between marks that nothing makes is a KeyError."""
    return _BLOCK.sub(lambda found: found[1] + made[found[2]]() + found[4], text)


def blocks(text: str) -> dict[str, str]:
    """What stands between a page's marks, by name."""
    return {found[2]: found[3] for found in _BLOCK.finditer(text)}


def device(facts: Mapping[str, Any]) -> str:
    """The GPU's or the processor's name, and how many cores were there."""
    on_gpu = str(facts["settings"].get("device", "cpu")).startswith("cuda")
    if on_gpu and facts["gpu"]:
        return str(facts["gpu"])
    name = re.sub(r"\((R|TM)\)|\b(CPU|Processor)\b|@", " ", str(facts["cpu"]))
    return f"{' '.join(name.split())}, {facts['cores']} cores"


def threads(facts: Mapping[str, Any]) -> str:
    """``, 1 thread`` where not all cores were used, by library where these differ; else nothing."""
    counts = facts.get("threads") or {}
    if device(facts) == facts["gpu"] or all(n == facts["cores"] for n in counts.values()):
        return ""
    told = {name: f"{n} thread" + "s" * (n != 1) for name, n in counts.items()}
    if len(set(told.values())) == 1:
        return ", " + next(iter(told.values()))
    return ", " + ", ".join(f"{name} {text}" for name, text in told.items())


def measured(facts: Mapping[str, Any]) -> str:
    """Device, threads and commit, for a cell."""
    commit, _, more = str(facts["commit"] or "unknown").partition(" ")
    changes = " with changes" if more or facts.get("changed_since") else ""
    cut = "" if facts.get("finished", True) else ", cut short"
    return f"{device(facts)}{threads(facts)}; {commit[:7]}{changes}{cut}"


def origin(facts: Mapping[str, Any]) -> str:
    """Under a table: benchmark, commit, device, threads, rounds, what else ran, whether all ran."""
    commit = str(facts["commit"] or "an unknown commit")
    if facts.get("changed_since"):
        commit += " with changes"
    settings, load = facts["settings"], facts.get("load_before")
    busy = f"; load {load[0]:.1f} before it began" if load else ""
    turns, most = settings.get("rounds"), "at most " if "patience" in settings else ""
    rounds = f"; {most}{turns} round{'s' * (turns != 1)}" if turns else ""
    cut = (
        ""
        if facts.get("finished", True)
        else ("\n**Cut short**: the rows above came before the benchmark was stopped.\n")
    )
    where = f"{device(facts)}{threads(facts)}"
    return f"\n`benchmarks.{facts['benchmark']}` at {commit} on {where}{rounds}{busy}.\n{cut}"


def number(value: float | None, digits: int = 3) -> str:
    """So many significant digits, no exponent: 2610, 16.2, 0.0715, 0.100."""
    if value is None or not math.isfinite(value):
        return "–"
    if value == 0:
        return "0"
    shown = float(f"{value:.{digits - 1}e}")
    power = math.floor(math.log10(abs(shown)))
    return f"{shown:.1e}" if power < -12 else f"{shown:.{max(digits - 1 - power, 0)}f}"


def seconds(value: float) -> str:
    """With the unit that keeps it readable."""
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if abs(value) >= size or unit == "µs":
            return f"{number(value / size)} {unit}"
    raise AssertionError


def exactly(value: float) -> str:
    """Seconds that were set, not measured: no digit more than they have."""
    return f"{value:g} s" if value >= 1 else f"{1e3 * value:g} ms"


def middle(row: Mapping[str, Any], name: str, show: Callable[[float], str] = number) -> str:
    """A median with the 20th and 80th percentile: ``174 [166, 191]``."""
    low, value, high = (row[f"{name}_{part}"] for part in ("p20", "p50", "p80"))
    return f"{show(value)} [{show(low)}, {show(high)}]"


def rows(result: Result, **wanted: Any) -> list[Mapping[str, Any]]:
    """Rows that have these values."""
    if result is None:
        return []
    return [row for row in result["rows"] if all(row.get(x) == y for x, y in wanted.items())]


def first(result: Result, **wanted: Any) -> Mapping[str, Any] | None:
    """The first row that has these values; None in a result that was cut short before it."""
    return next(iter(rows(result, **wanted)), None)


def whole(gpu: Result, name: str) -> Mapping[str, Any] | None:
    """The GPU's row of a work on all channels; None where it failed or was not measured."""
    found = [x for x in rows(gpu, what=name) if not x.get("failed")]
    found = [x for x in found if x.get("backend", "cuda") == "cuda"]
    return max(found, key=lambda x: x.get("problems", 0)) if found else None


def taken(row: Mapping[str, Any]) -> float:
    """Its seconds: the median, or the one run's."""
    return float(row["seconds_p50"] if "seconds_p50" in row else row["seconds"])
