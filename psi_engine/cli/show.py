"""``show`` and ``doctor``: what a run holds, what this machine can do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from psi_engine.cli import completion
from psi_engine.cli.options import Debug, Json
from psi_engine.cli.program import app
from psi_engine.cli.screen import reported


@app.command()
def show(
    run_folder: Annotated[Path, typer.Argument(metavar="RUN", help="Run folder.")],
    channel: Annotated[
        str | None,
        typer.Argument(
            help="layer:channel, such as layer4:1680; none = the run.",
            autocompletion=completion.layers,
        ),
    ] = None,
    top: Annotated[int, typer.Option(help="Channels listed for a whole run.")] = 10,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Show a run, or one of its channels."""
    with reported(debug):
        from psi_engine.artifacts import open_run
        from psi_engine.report import tables, terminal

        opened = open_run(run_folder)
        if channel is None:
            found = tables.summarise(opened, top)
        else:
            found = tables.channel_details(opened, channel)
        if as_json:
            typer.echo(json.dumps(found, indent=2, allow_nan=False))
        elif channel is None:
            terminal.show_summary(Console(), found)
        else:
            terminal.show_channel(Console(), found)


@app.command()
def doctor(as_json: Json = False, debug: Debug = False) -> None:
    """Say what works on this machine, what does not, and the command that mends it."""
    with reported(debug):
        from psi_engine.doctor import examine
        from psi_engine.report.terminal import show_checks

        checks = examine()
        if as_json:
            typer.echo(json.dumps(checks, indent=2))
        else:
            show_checks(Console(), checks)
