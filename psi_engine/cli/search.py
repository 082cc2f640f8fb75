"""``search``: neurons by text, by example or by image."""

from __future__ import annotations

import contextlib
import json
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from psi_engine.cli.options import Debug, Device, Json, Quiet, commas
from psi_engine.cli.program import app
from psi_engine.cli.screen import error_console, reported
from psi_engine.errors import InputError


@app.command()
def search(
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN... [TEXT]",
            help="Run folders, then the text, unless --like or --image is given.",
        ),
    ],
    like: Annotated[
        str | None,
        typer.Option(help="Channels to search like, such as layer4:1680,RUN/layer4:3."),
    ] = None,
    image: Annotated[Path | None, typer.Option(help="Image to search by.")] = None,
    top: Annotated[int, typer.Option(help="Results.")] = 10,
    layer: Annotated[
        str | None, typer.Option(help="Only these layers, separated by commas.")
    ] = None,
    verdict: Annotated[
        str | None, typer.Option(help="Only polysemantic, monosemantic or random-like channels.")
    ] = None,
    channels: Annotated[
        bool, typer.Option("--channels", help="Each channel once, by its nearest cluster.")
    ] = False,
    device: Device = None,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Find the neurons nearest to a text, to other neurons or to an image, in one or more runs."""
    with reported(debug):
        runs, text = _runs_and_text(words, like is not None or image is not None)
        from psi_engine.report import neighbors as screen
        from psi_engine.retrieval.search import search as find

        with contextlib.redirect_stdout(sys.stderr):
            found = find(
                runs,
                text,
                like=commas(like or ""),
                image=image,
                top=top,
                layers=commas(layer or ""),
                verdict=verdict,
                per="channel" if channels else "cluster",
                device=device or "auto",
            )
        summary = screen.summarise(found.query, found.table, found.notes)
        if as_json:
            typer.echo(json.dumps(summary, indent=2, allow_nan=False))
            return
        if not quiet:
            for note in found.notes:
                error_console().print(f"note: {note}", style="yellow", highlight=False)
        screen.show(Console(), summary)


def _runs_and_text(words: list[str], asked: bool) -> tuple[list[str], str | None]:
    """Run folders and the text; the text comes last."""
    if asked:
        return words, None
    from psi_engine.artifacts import MANIFEST  # brings torch, which --help can do without

    *runs, text = words
    forgotten = (Path(text) / MANIFEST).is_file() or (not runs and Path(text).is_dir())
    if forgotten or not runs:
        missing = "query" if forgotten else "run folder"
        raise InputError(
            f"no {missing} is given",
            got=repr(text),
            expected='RUN "text", or RUN with --like LAYER:CHANNEL or --image FILE',
        )
    return runs, text
