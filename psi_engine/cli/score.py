"""``score``: embeddings another tool made."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from psi_engine.cli.options import Debug, Device, Json, Out, Preset, Quiet, Replicates, Seed
from psi_engine.cli.program import app
from psi_engine.cli.screen import error_console, finish, reported, screen


@app.command()
def score(
    file: Annotated[Path, typer.Argument(help="npz, safetensors or parquet with `embeddings`.")],
    labels: Annotated[Path | None, typer.Option(help="npy/npz: (channels, patches) ints.")] = None,
    text: Annotated[Path | None, typer.Option(help="npy/npz: text embeddings.")] = None,
    pool: Annotated[Path | None, typer.Option(help="npy/npz: reference patches.")] = None,
    preset: Preset = None,
    replicates: Replicates = None,
    device: Device = None,
    seed: Seed = None,
    out: Out = None,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Score embeddings another tool made."""
    with reported(debug):
        from psi_engine.report.tables import summarise
        from psi_engine.score_file import score_file

        console = error_console()
        changes = {"replicates": replicates, "seed": seed}
        with screen(console, quiet or as_json) as progress:
            result = score_file(
                file,
                labels=labels,
                text=text,
                pool=pool,
                preset=preset or "calibrated",
                changes={name: value for name, value in changes.items() if value is not None},
                device=device or "auto",
                out=None if out is None else Path(out),
                progress=progress,
            )
        finish(console, summarise(result), as_json, quiet)
