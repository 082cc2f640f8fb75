"""The program itself; the commands' modules add themselves to it."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from psi_engine import __version__

app = typer.Typer(
    name="psi-engine",
    help="Null-calibrated polysemanticity scores for every neuron of a vision model.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


def main() -> None:
    """Run the command line; ``python -m psi_engine`` and ``psi-engine`` both end up here."""
    # Threads that wait for each other by spinning take three times as long on a machine that
    # does something else too. It must be said before torch loads OpenMP.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    app()


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"psi-engine {__version__}")
        raise typer.Exit


@app.callback()
def _program(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True)] = False,
) -> None:
    pass
