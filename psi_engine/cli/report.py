"""``report``: a folder to read a run in, without a server and without a network."""

from __future__ import annotations

import contextlib
import json
import sys
import traceback
import webbrowser
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from psi_engine.cli.options import Debug, Json, Out, Quiet
from psi_engine.cli.program import app
from psi_engine.cli.screen import error_console, reported, screen
from psi_engine.errors import PsiEngineError


@app.command()
def report(
    run_folder: Annotated[Path, typer.Argument(metavar="RUN", help="Finished run folder.")],
    out: Out = None,
    max_size: Annotated[
        int, typer.Option(help="Megabytes it may take; host images are left out first.")
    ] = 150,
    open_it: Annotated[bool, typer.Option("--open", help="Open it in the browser.")] = False,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Write the report page of a run: overview, table, a panel per channel, map."""
    with reported(debug):
        from psi_engine.report_run import report as write

        console = error_console()
        chatter = contextlib.redirect_stdout(sys.stderr)
        with chatter, screen(console, quiet or as_json) as progress:
            made = write(
                run_folder,
                None if out is None else Path(out),
                max_size=max_size,
                progress=progress,
            )
        if as_json:
            found = {"report": str(made.index), "bytes": made.size, "kept": made.kept}
            typer.echo(json.dumps(found | {"notes": made.notes}, indent=2))
        else:
            if not quiet:
                for note in made.notes:
                    console.print(f"note: {note}", style="yellow", highlight=False)
                said = "is up to date" if made.kept else "written"
                console.print(f"report {said}: {made.size / 1e6:.1f} MB", highlight=False)
            typer.echo(str(made.index))
        if open_it:
            webbrowser.open(made.index.resolve().as_uri())


def add_report(console: Console, run_folder: Path, quiet: bool, debug: bool = False) -> str | None:
    """Write the report at the end of a run; a failure is told and leaves the run as it is.

    Parameters
    ----------
    console : Console
    run_folder : Path
    quiet : bool
    debug : bool
        Print the traceback of a failure too.

    Returns
    -------
    str or None
        Path of its page.
    """
    from psi_engine.report_run import report as write

    try:
        with contextlib.redirect_stdout(sys.stderr), screen(console, quiet) as progress:
            made = write(run_folder, progress=progress)
    except Exception as error:  # whatever it is: the run is finished and must not look failed
        if debug:
            traceback.print_exc()
        told = error if isinstance(error, PsiEngineError) else f"{type(error).__name__}: {error}"
        sys.stderr.write(f"note: the scores are kept, but no report could be written: {told}\n")
        return None
    if not quiet:
        for note in made.notes:
            console.print(f"note: report: {note}", style="yellow", highlight=False)
    return str(made.index)
