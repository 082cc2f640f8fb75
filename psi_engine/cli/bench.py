"""``bench``: many models into one comparison."""

from __future__ import annotations

import contextlib
import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from psi_engine.cli.options import Debug, Json, Out, Quiet
from psi_engine.cli.program import app
from psi_engine.cli.screen import error_console, reported, screen


@app.command()
def bench(
    file: Annotated[Path, typer.Argument(metavar="SUITE", help="TOML file of [[models]].")],
    out: Out = None,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Run many models × presets × seeds and compare them; finished runs are kept."""
    with reported(debug, resumable=True):
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
