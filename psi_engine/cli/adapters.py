"""``import`` and ``export``: other tools' files to a run folder and back."""

from __future__ import annotations

import contextlib
import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from psi_engine.cli.options import (
    Debug,
    Device,
    EncoderWeights,
    ImageSize,
    Json,
    MaxImages,
    Preset,
    Quiet,
    Replicates,
    Seed,
    Weights,
    commas,
)
from psi_engine.cli.program import app
from psi_engine.cli.screen import error_console, finish, reported, screen
from psi_engine.errors import InputError

Tool = Annotated[
    str,
    typer.Argument(help="semanticlens, crp, clip-dissect, exemplars, saev or sae-for-vlm."),
]


@app.command("import")
def import_(
    tool: Tool,
    paths: Annotated[list[Path], typer.Argument(metavar="PATH...", help="Its files or folders.")],
    out: Annotated[str, typer.Option(help="Run folder to write.")],
    data: Annotated[
        str | None, typer.Option(help="The images the tool used, in its order, as for run.")
    ] = None,
    max_images: MaxImages = None,
    encoder: Annotated[
        str | None, typer.Option(help="As for run; none = the embeddings in the files.")
    ] = None,
    encoder_weights: EncoderWeights = None,
    concepts: Annotated[str | None, typer.Option(help="File of concepts, one a line.")] = None,
    model: Annotated[
        str | None, typer.Option(help="The network, for receptive fields of positions.")
    ] = None,
    weights: Weights = None,
    image_size: ImageSize = None,
    grid: Annotated[
        str | None, typer.Option(help="HxW of the layer's map, where the files do not say.")
    ] = None,
    patch: Annotated[
        str | None, typer.Option(help="effective, theoretical or a side in pixels.")
    ] = None,
    layer: Annotated[str | None, typer.Option(help="Name of the only layer.")] = None,
    top_k: Annotated[
        int | None, typer.Option(help="Examples a channel, of files with every activation.")
    ] = None,
    drop_missing: Annotated[
        bool, typer.Option("--drop-missing", help="Leave out slots without an image (id −1).")
    ] = False,
    text: Annotated[
        Path | None, typer.Option(help="npy/npz: text embeddings, for a concept database.")
    ] = None,
    labels: Annotated[
        Path | None, typer.Option(help="npy/npz: labels of its patches, for a concept database.")
    ] = None,
    preset: Preset = None,
    replicates: Replicates = None,
    batch_size: Annotated[int | None, typer.Option(help="Images loaded together.")] = None,
    workers: Annotated[int | None, typer.Option(help="Processes that decode images.")] = None,
    device: Device = None,
    seed: Seed = None,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Make a run folder of another tool's files, as far as they go."""
    given: dict[str, Any] = {
        "data": data, "max_images": max_images, "encoder": encoder,
        "encoder_weights": encoder_weights, "concepts": concepts, "model": model,
        "weights": weights, "image_size": image_size, "top_k": top_k, "preset": preset,
        "replicates": replicates, "batch_size": batch_size, "workers": workers,
        "device": device, "seed": seed,
        "patch": int(patch) if patch is not None and patch.isdigit() else patch,
    }  # fmt: skip
    with reported(debug, resumable=True):
        from psi_engine.adapters.into_run import import_files
        from psi_engine.report.tables import summarise

        console = error_console()
        chatter = contextlib.redirect_stdout(sys.stderr)
        with chatter, screen(console, quiet or as_json) as progress:
            run = import_files(
                tool, paths, out=out, grid=_grid(grid), layer=layer, drop_missing=drop_missing,
                text=text, labels=labels, progress=progress,
                **{name: value for name, value in given.items() if value is not None},
            )  # fmt: skip
        if "score" in run.manifest["stages"]:
            finish(console, summarise(run), as_json, quiet)
            return
        if not quiet:
            sys.stderr.write(
                "note: sites only; the same command with --encoder goes on to scores\n"
            )
        typer.echo(json.dumps({"run": str(run.path)}) if as_json else str(run.path))


@app.command()
def export(
    tool: Tool,
    run_folder: Annotated[Path, typer.Argument(metavar="RUN", help="Run folder.")],
    out: Annotated[str, typer.Option(help="Folder to write the tool's files into.")],
    layer: Annotated[
        str | None, typer.Option(help="Layers, separated by commas; none = all.")
    ] = None,
    top_k: Annotated[
        int | None, typer.Option(help="The best so many a channel (exemplars: 15).")
    ] = None,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Write a run as the files of another tool."""
    with reported(debug):
        from psi_engine.adapters.from_run import export_run

        layers = [] if layer is None else commas(layer)
        with screen(error_console(), quiet or as_json) as progress:
            written = export_run(
                tool, run_folder, out, layers=layers, top_k=top_k, progress=progress
            )
        names = [str(path) for path in written]
        typer.echo(json.dumps({"files": names}) if as_json else "\n".join(names))


def _grid(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    rows, cross, columns = text.lower().partition("x")
    if not (cross and rows.isdecimal() and columns.isdecimal() and int(rows) and int(columns)):
        raise InputError("not a grid", got=repr(text), expected="HxW, such as 14x14")
    return int(rows), int(columns)
