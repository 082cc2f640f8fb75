"""What the command line shows: progress while working, tables when done."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any

from rich import box
from rich.console import Console, RenderableType
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Column, Table
from rich.text import Text

from psi_engine.types import VERDICTS


class RateColumn(ProgressColumn):
    """Items per second."""

    def render(self, task: Task) -> Text:
        """Render the task's rate, or nothing while it is unknown."""
        speed = task.finished_speed or task.speed
        return Text(
            f"{speed:,.0f}/s" if speed and speed >= 10 else f"{speed:.1f}/s" if speed else ""
        )


_RATE_SECONDS = 300.0  # a block of crops can take a minute: its rate needs two of them
_NARROW = 100  # columns of a terminal in which a wide bar would leave no room for names


class Bars(Progress):
    """Bars whose figures are never cut; names are, and notes stand on lines of their own."""

    def get_renderables(self) -> Iterable[RenderableType]:
        """Render the bars, then what is noted of those that are not finished."""
        yield self.make_tasks_table(self.tasks)
        for task in self.tasks:
            if task.fields["note"] and not task.finished:
                text = f"{task.description}: {task.fields['note']}"
                yield Text(text, style="dim", no_wrap=True, overflow="ellipsis")


class NameColumn(ProgressColumn):
    """What the work is, cut where the terminal is too narrow."""

    def render(self, task: Task) -> Text:
        """Render the task's description."""
        return Text(task.description, no_wrap=True, overflow="ellipsis")


class ProgressScreen:
    """Progress bars on stderr, one per kind of work; use as a context manager.

    Parameters
    ----------
    console : Console
    quiet : bool
        Show nothing.
    """

    def __init__(self, console: Console, quiet: bool) -> None:
        self._quiet = quiet
        whole = [Column(no_wrap=True) for _ in range(5)]
        self._bars = Bars(
            NameColumn(),
            BarColumn(28 if console.width >= _NARROW else 12, table_column=whole[0]),
            MofNCompleteColumn(table_column=whole[1]),
            RateColumn(table_column=whole[2]),
            TimeElapsedColumn(table_column=whole[3]),
            TimeRemainingColumn(table_column=whole[4]),
            console=console,
            disable=quiet,
            speed_estimate_period=_RATE_SECONDS,
        )
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> ProgressScreen:
        return self  # the bars start with the first report, so that errors come out alone

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._tasks:
            self._bars.stop()

    def __call__(self, what: str, done: int, total: int) -> None:
        """Show that ``done`` of ``total`` items of ``what`` are finished."""
        if self._quiet:
            return
        if what not in self._tasks:
            self._bars.start()
            self._tasks[what] = self._bars.add_task(what, total=total, note="")
        self._bars.update(self._tasks[what], completed=done, total=total)

    def note(self, what: str, text: str) -> None:
        """Show a few words beside a bar, such as what holds the work up."""
        if not self._quiet:
            self._bars.update(self._tasks[what], note=text)


def show_summary(console: Console, summary: Mapping[str, Any]) -> None:
    """Draw the layers, the top channels, the notes and where time went."""
    headings = (*VERDICTS[:-1], "unscored")  # shorter, so that 80 columns hold the table
    layers = _table("layer", "channels", *headings, "log PSI")
    for row in summary["layers"]:
        counts = (str(row[name]) for name in ("channels", *VERDICTS))
        layers.add_row(row["layer"], *counts, _number(row["median_log_psi"]))
    console.print(layers)
    if len(summary["layers"]) > 1:
        console.print("The false discovery rate is controlled within each layer.")
    top = _table("channel", "PSI", "Ŝ", "Q̂", "D̂", "p adj", "k̂")
    top.add_column("verdict")
    top.add_column("clusters")
    for row in summary["top"]:
        parts = (_share(row[name]) for name in ("psi", "s_hat", "q_hat", "d_hat"))
        names = " | ".join(name or "–" for name in row["concepts"])
        address = f"{row['layer']}:{row['channel']}"
        p = _number(row["psi_p_adj"])
        top.add_row(address, *parts, p, str(row["n_clusters"]), row["verdict"], names)
    console.print(top)
    for note in summary["notes"]:
        console.print(f"note: {note}", style="yellow", highlight=False)
    spent = "  ".join(f"{name} {value:.1f} s" for name, value in summary["seconds"].items())
    console.print(f"time: {spent}", highlight=False)


def show_truth(console: Console, truth: Mapping[str, Any]) -> None:
    """Draw how well the scores tell planted units apart, and how good the demo's networks are."""
    table = _table("planted units", "polysemantic against monosemantic", "against random")
    for measure, areas in truth["auroc"].items():
        table.add_row(f"AUROC of {measure}", f"{areas['mono']:.3f}", f"{areas['random']:.3f}")
    console.print(table)
    accuracy = "  ".join(f"{name} {value:.3f}" for name, value in truth["accuracy"].items())
    console.print(f"held-out accuracy: {accuracy}", highlight=False)


def show_ground_truth(console: Console, summary: Mapping[str, Any]) -> None:
    """Draw the worst contrast of each measure on the held-out classes, suite by suite."""
    for suite, rows in summary["suites"].items():
        table = _table(suite, "unrelated", "95 %", "related", "projection")
        # names fold, so that 80 columns hold the numbers
        table.columns[0].no_wrap, table.columns[0].overflow = False, "fold"
        for column in table.columns[1:]:
            column.no_wrap = True
        family = None
        for row in rows:
            if family not in (None, row["family"]):
                table.add_section()
            family = row["family"]
            ends = (_share(row.get(f"unrelated_{end}")) for end in ("low", "high"))
            others = (_share(row.get(name)) for name in ("related", "projection"))
            table.add_row(row["measure"], _share(row.get("unrelated")), "–".join(ends), *others)
        console.print(table)
        console.print(
            "AUROC of the worst contrast on the held-out classes; of a control, of the one "
            "furthest from 0.5.\nWith labels Q is circular, since planted kinds are made of "
            "classes: the rows without count.\n"
        )
        for note in summary["notes"][suite]:
            console.print(f"note: {note}", style="yellow", highlight=False)
    spent = "  ".join(f"{name} {value:.1f} s" for name, value in summary["seconds"].items())
    console.print(f"time: {spent}", highlight=False)


def show_parts(console: Console, parts: Sequence[Mapping[str, Any]]) -> None:
    """Draw what became of each part of a validation, what it found and what to know about it."""
    colours = {"done": "green", "kept": "green", "skipped": "yellow", "failed": "red"}
    for row in parts:
        line = Text(f"{row['part']}: ").append(row["status"], style=colours[row["status"]])
        line.append(f"  {row['reason']}" if row["reason"] else f"  {row['seconds']:.1f} s")
        console.print(line)
        for found in row["headline"]:
            console.print(f"  {found}", highlight=False)
        for note in row["notes"]:
            console.print(f"  note: {note}", style="yellow", highlight=False)
        for file in (*row["tables"], *row["figures"]):
            console.print(f"  {file}", style="dim", highlight=False)


def show_swaps(console: Console, summary: Mapping[str, Any]) -> None:
    """Draw the pooled tests of the swaps: hard pastes where there are any, else feathered."""
    tests = summary["tests"]
    blend = min((row["blend"] for row in tests), key=("hard", "feathered").index, default="hard")
    shown = [row for row in tests if row["blend"] == blend]
    alone = len({row["layer"] for row in shown if row["level"] == "layer"}) == 1
    table = _table("aligned against", "ΔA", "aligned − it", "95 %", "p (t)", "p (W)", "dz")
    for column in table.columns:
        column.no_wrap = True
    place = None
    for row in shown:
        if row["level"] == "all" and alone:
            continue
        if place != (row["layer"], row["hosts"]):
            place = row["layer"], row["hosts"]
            table.add_section()
            name = f"{row['layer'] or 'all'}, {row['hosts']} hosts"
            table.add_row(name, _signed(row["mean_aligned"]), f"n {row['n']}")
        interval = " ".join(_signed(row[f"difference_{end}"]) for end in ("low", "high"))
        table.add_row(
            f"  {row['control']}",
            _signed(row["mean_control"]),
            _signed(row["mean_difference"]),
            interval,
            *(_share(row[name]) for name in ("t_p_holm", "wilcoxon_p_holm")),
            "–" if row["dz"] is None else f"{row['dz']:+.2f}",
        )
    console.print(table)
    console.print(
        f"ΔA in units of each channel's range, {blend} paste, pooled over the means of n channels; "
        "beside the hosts ΔA of aligned.\nTwo-sided paired tests, Holm-corrected."
    )
    for row in summary["skipped"]:
        console.print(
            f"left out: {row['layer']}:{row['channel']} {row['reason']}", style="yellow",
            highlight=False,
        )  # fmt: skip
    for note in summary["notes"]:
        console.print(f"note: {note}", style="yellow", highlight=False)
    console.print(f"time: swap {summary['seconds']:.1f} s", highlight=False)


def show_channel(console: Console, details: Mapping[str, Any]) -> None:
    """Draw one channel: its scores beside their nulls, its clusters, their sites."""
    scores = details["scores"]
    console.print(
        f"{scores['layer']}:{scores['channel']}  {scores['verdict']}"
        f"  PSI {_number(scores['psi'])}"
        f" [{_number(scores['psi_low'])}, {_number(scores['psi_high'])}]"
        f"  p adj {_number(scores['psi_p_adj'])}  {scores['status']} {scores['reason']}".rstrip(),
        highlight=False,
    )
    parts = _table("", "observed", "null mean", "null sd", "z", "p", "p adj", "calibrated")
    for x in ("s", "q", "d"):
        cells = (
            scores[x + end] for end in ("", "_null_mean", "_null_std", "_z", "_p", "_p_adj", "_hat")
        )
        parts.add_row(x.upper(), *map(_number, cells))
    console.print(parts)
    clusters = _table("cluster", "size", "silhouette")
    clusters.add_column("concepts")
    clusters.add_column("best sites (image: activation)")
    for row in details["clusters"]:
        named = ", ".join(f"{c['concept']} {c['similarity']:.3f}" for c in row["concepts"] or ())
        members = [site for site in details["sites"] if site["cluster"] == row["cluster"]]
        shown = ", ".join(_site(site) for site in members[:3])
        clusters.add_row(
            str(row["cluster"]), str(row["size"]), _number(row["silhouette"]), named, shown
        )
    console.print(clusters)


def show_checks(console: Console, checks: Sequence[Mapping[str, Any]]) -> None:
    """Draw what works here, what does not, and the command that mends it."""
    table = Table(box=box.SIMPLE_HEAD)
    for name in ("what", "state", "detail", "mend"):
        table.add_column(name, overflow="fold")
    for row in checks:
        colour = {"ok": "green", "missing": "yellow", "broken": "red"}[row["state"]]
        table.add_row(row["what"], Text(row["state"], style=colour), row["detail"], row["mend"])
    console.print(table)


def _table(first: str, *numbers: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
    table.add_column(first, no_wrap=True)
    for name in numbers:
        table.add_column(name, justify="right")
    return table


def _site(site: Mapping[str, Any]) -> str:
    if site["key"] is None:  # embeddings that came without images
        return f"patch {site['rank']}"
    return f"{site['key']}: {_number(site['activation'])}"


def _signed(value: float | None) -> str:
    return "–" if value is None else f"{value:+.3f}"


def _share(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3g}"
