"""The report's folder: built beside its place, and put there when it is whole."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from psi_engine import __version__
from psi_engine.artifacts import Run, fingerprint
from psi_engine.report.page import core, details, evidence
from psi_engine.report.page.layout import lay_out
from psi_engine.report.page.numbers import printable, rounded, script
from psi_engine.report.page.pictures import COLUMNS, Drawn, Pictures, draw
from psi_engine.report.page.place import (
    read_record,
    refuse_fixed,
    refuse_foreign,
    replacing,
    write_record,
)
from psi_engine.report.page.sites import Sites, group_clusters, order_sites
from psi_engine.report.parts import finished_parts
from psi_engine.types import VERDICTS, Progress

MAX_SIZE = 150
"""Megabytes a report may take by default; pictures are left out, with a note, to stay below."""

INDEX = "index.html"

SCRIPTS = (
    "base.js", "numbers.js", "charts.js", "verdicts.js", "thumbnails.js", "overview.js",
    "evidence.js", "table.js", "channel.js", "explain.js", "patches.js", "map.js", "keys.js",
)  # fmt: skip
"""In the order they are loaded; the data follow, then ``main.js``."""

STYLES = ("style.css", "views.css", "print.css")

_PICTURES_SHARE = 0.9
# Of the bound, for pictures; the rest is for tables and figures.
_PAGE = resources.files("psi_engine.report.page")
_ASSETS = _PAGE / "assets"


@dataclass(frozen=True)
class Sources:
    """What the page is made of beside the run's tables; what is missing is said on the page.

    pictures : where the images are; None with a reason in ``no_pictures``.
    vectors : float32 (channels, dim), one row per row of ``channels.parquet``, to lay the map
    out by; None with a reason in ``no_map``. class_names : names of the labels.
    """

    pictures: Pictures | None = None
    no_pictures: str = ""
    vectors: NDArray[np.float32] | None = None
    no_map: str = ""
    class_names: Sequence[str] | None = field(default=None)


@dataclass(frozen=True)
class Report:
    """A finished report. size : bytes. notes : what was left out of it. kept : made earlier."""

    index: Path
    size: int
    notes: tuple[str, ...]
    kept: bool = False


def report_key(run: Run, max_size: int) -> str:
    """Key of a report: of everything it shows and of the page itself."""
    stages = run.manifest["stages"]
    tables = ("channels", "clusters", "sites", "nulls", "causal_summary")
    files = [run.path / f"{name}.parquet" for name in tables]
    there = [(path.name, path.stat().st_size) for path in files if path.is_file()]
    parts = [(r["part"], r["key"], r["current"]) for r in _records(run)]
    page = [
        (entry.name, entry.read_text(encoding="utf-8"))
        for entry in (*_asset_files(), *_code_files())
    ]
    return fingerprint("report", __version__, stages, there, parts, page, max_size)


def held_report(run: Run, out: Path, max_size: int = MAX_SIZE) -> Report | None:
    """The report at ``out`` if it is whole and shows what the run holds now.

    Raises
    ------
    RunFolderError
        ``out`` holds something else than a report, or would be replaced and cannot be renamed.
    """
    refuse_foreign(out)
    record = read_record(out)
    whole = record is not None and (out / INDEX).is_file()
    if record is not None and whole and record["key"] == report_key(run, max_size):
        return Report(out / INDEX, record["size"], tuple(record["notes"]), kept=True)
    refuse_fixed(out)
    return None


def write_report(
    run: Run,
    sources: Sources,
    out: Path,
    *,
    max_size: int = MAX_SIZE,
    progress: Progress | None = None,
) -> Report:
    """Write the report of a run; a report that is there already is replaced when this one is whole.

    Parameters
    ----------
    run : Run
    sources : Sources
    out : Path
        Folder of the report.
    max_size : int
        Megabytes.
    progress : callable, optional

    Returns
    -------
    Report

    Raises
    ------
    RunFolderError
        ``out`` holds something else than a report or cannot be renamed, or the run is not finished.
    DiskFullError
    """
    key = report_key(run, max_size)
    with replacing(out) as folder:
        notes = _write(folder, run, sources, max_size * 1_000_000, progress)
        size = _size(folder)
        if size > max_size * 1_000_000:
            notes.append(
                f"the report takes {size / 1e6:.0f} MB, more than --max-size: its tables need it"
            )
        whole = sources.pictures is not None and sources.vectors is not None
        # Without its pictures it is no report to keep: they may be back the next time.
        keep = whole or "file" in run.manifest["identity"]
        write_record(folder, key if keep else "", size, notes)
    return Report(out / INDEX, size, tuple(notes))


def _write(
    folder: Path, run: Run, sources: Sources, bound: int, progress: Progress | None
) -> list[str]:
    table = run.channels
    groups = group_clusters(table, run.clusters)
    sites = order_sites(table, groups, run.sites)
    drawn, why = _pictures(folder, sites, sources, bound, progress)
    notes = [why] if why else list(drawn.notes) if drawn else []
    swaps = _optional(run, "causal_summary", stage="swap")
    nulls = _optional(run, "nulls", stage="score")
    lists = details.cluster_lists(len(table), groups, sites, drawn)
    columns = core.channel_columns(table)
    names = core.add_clusters(columns, lists)
    facts = core.run_facts(run, table, nulls)
    parts = evidence.validation_parts(run, folder)
    _write_shards(folder, table, sites, drawn, sources, lists, nulls, swaps)
    value = facts | {
        "run": run.path.name,
        "columns": columns,
        "names": names,
        "shard": details.SHARD,
        "map": _map(sources, progress),
        "pictures": None if drawn is None else _picture_facts(drawn),
        "report_notes": notes,
        "null_quantiles": nulls is not None,
        "swaps": evidence.pooled_swaps(swaps),
        "parts": parts,
    }
    _write_page(folder, value, _headline(table, facts["alpha"]))
    return notes


def _pictures(
    folder: Path, sites: Sites, sources: Sources, bound: int, progress: Progress | None
) -> tuple[Drawn | None, str]:
    """Draw what can be drawn; else the reason why nothing can."""
    if sources.pictures is None:
        return None, f"no pictures: {sources.no_pictures}"
    room = int(_PICTURES_SHARE * bound)
    return draw(folder, sites.patches, sources.pictures, room, progress), ""


def _picture_facts(drawn: Drawn) -> dict[str, Any]:
    return {
        "columns": COLUMNS,
        "side": drawn.side,
        "host_side": drawn.host_side,
        "image_side": drawn.image_side,
    }


def _map(sources: Sources, progress: Progress | None) -> dict[str, Any]:
    if sources.vectors is None:
        return {"how": f"no map: {sources.no_map}", "x": None, "y": None}
    if progress is not None:
        progress("laying out the map", 0, 1)
    places, how = lay_out(sources.vectors)
    if progress is not None:
        progress("laying out the map", 1, 1)
    return {"how": how, "x": rounded(places[:, 0], 4), "y": rounded(places[:, 1], 4)}


def _write_shards(
    folder: Path,
    table: pa.Table,
    sites: Sites,
    drawn: Drawn | None,
    sources: Sources,
    lists: list[Any],
    nulls: pa.Table | None,
    swaps: pa.Table | None,
) -> None:
    found = details.shards(
        lists, sites, drawn, sources.class_names,
        details.null_quantiles(table, nulls), details.swap_tests(table, swaps),
    )  # fmt: skip
    (folder / "data").mkdir()
    for number, value in enumerate(found):
        text = script(f"channels-{number}", value)
        (folder / "data" / f"channels-{number}.js").write_text(text, encoding="utf-8")


def _write_page(folder: Path, value: dict[str, Any], headline: str) -> None:
    from jinja2 import Environment

    for entry in _asset_files():
        if not entry.name.endswith(".j2"):
            (folder / entry.name).write_text(entry.read_text(encoding="utf-8"), encoding="utf-8")
    template = (_ASSETS / f"{INDEX}.j2").read_text(encoding="utf-8")
    page = Environment(autoescape=True, keep_trailing_newline=True).from_string(template)
    text = page.render(
        title=printable(value["title"]), headline=headline, styles=STYLES, scripts=SCRIPTS,
        columns=len(value["columns"]["layer"]),
    )  # fmt: skip
    (folder / INDEX).write_text(text, encoding="utf-8")
    value["size"] = _size(folder)
    (folder / "data" / "core.js").write_text(script("core", value), encoding="utf-8")


def _headline(table: pa.Table, alpha: float) -> str:
    verdicts = table["verdict"].to_pylist()
    count = verdicts.count(VERDICTS[0])
    found = f"{count:,} of {len(table):,} channels are polysemantic at FDR {alpha:.3g}"
    return found if len(core.layers_of(table)) < 2 else f"{found}, controlled within each layer"


def _optional(run: Run, name: str, stage: str) -> pa.Table | None:
    """A table that not every run has; one of an earlier score does not count."""
    path = run.path / f"{name}.parquet"
    done = run.manifest["stages"].get(stage, {}).get("status") == "done"
    return pq.read_table(path) if done and path.is_file() else None


def _records(run: Run) -> list[dict[str, Any]]:
    return finished_parts(run) if "key" in run.manifest["stages"].get("score", {}) else []


def _asset_files() -> list[Any]:
    return sorted((entry for entry in _ASSETS.iterdir() if entry.is_file()), key=lambda e: e.name)


def _code_files() -> list[Any]:
    """The page's own Python: other words or numbers make another report."""
    return sorted((x for x in _PAGE.iterdir() if x.name.endswith(".py")), key=lambda e: e.name)


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
