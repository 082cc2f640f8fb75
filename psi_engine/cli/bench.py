"""``bench``: many models into one comparison, or a benchmark of the checkout."""

from __future__ import annotations

import contextlib
import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from psi_engine.cli import benchmarks
from psi_engine.cli.options import Debug, Json, Out, Quiet
from psi_engine.cli.program import app
from psi_engine.cli.screen import error_console, reported, screen
from psi_engine.errors import InputError


class Bench(TyperCommand):
    """Leaves everything that follows a benchmark's name to the benchmark, ``--help`` too."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Stop reading options at the name."""
        if args and _is_name(args[0]):
            ctx.allow_extra_args, ctx.allow_interspersed_args = True, False
        return super().parse_args(ctx, args)


def _is_name(what: str) -> bool:
    """A bare word, where no file has that name."""
    return what.replace("-", "_").isidentifier() and not Path(what).is_file()


@app.command(cls=Bench)
def bench(
    context: typer.Context,
    what: Annotated[
        str | None,
        typer.Argument(
            metavar="SUITE|NAME",
            help="A suite's TOML file; or a benchmark of the checkout, then its own options.",
        ),
    ] = None,
    listing: Annotated[
        bool, typer.Option("--list", help="Name the benchmarks of the checkout.")
    ] = False,
    out: Out = None,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Run many models × presets × seeds and compare them, or run a benchmark of the checkout.

    A suite's finished runs are kept.
    """
    with reported(debug, resumable=what is not None and not _is_name(what)):
        if listing:
            for name, line in benchmarks.listed().items():
                typer.echo(f"{name:15} {line}")
        elif what is None:
            raise InputError(
                "nothing to run",
                expected="the TOML file of a suite, or a benchmark's name",
                fix="psi-engine bench --list names the benchmarks of a checkout",
            )
        elif _is_name(what):
            if out or as_json or quiet:
                raise InputError(
                    "an option stands before the benchmark's name",
                    expected=f"psi-engine bench {what} [its own options]",
                    fix=f"psi-engine bench {what} --help names them",
                )
            raise typer.Exit(benchmarks.run(what.replace("-", "_"), context.args))
        else:
            _suite(Path(what), out, as_json, quiet)


def _suite(file: Path, out: str | None, as_json: bool, quiet: bool) -> None:
    from psi_engine.bench import read_plan, run_suite
    from psi_engine.report.comparison import show as show_comparison

    plan, console, silent = read_plan(file, out), error_console(), quiet or as_json

    def titled(title: str) -> Any:
        if not silent:
            console.print(title, highlight=False)
        return screen(console, silent)

    with contextlib.redirect_stdout(sys.stderr):
        summary = run_suite(plan, titled).summary()
    if not silent:
        show_comparison(console, summary)
    typer.echo(json.dumps(summary, indent=2, allow_nan=False) if as_json else summary["suite"])
    if summary["failed"]:
        raise typer.Exit(1)
