"""``validate``: how far scores can be trusted."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Set
from dataclasses import asdict, fields
from pathlib import Path
from typing import Annotated, Any

import typer

from psi_engine.cli import completion
from psi_engine.cli.options import (
    Debug,
    Device,
    EncoderWeights,
    ImageSize,
    Json,
    MaxImages,
    Out,
    Quiet,
    Replicates,
    Seed,
    Weights,
)
from psi_engine.cli.program import app
from psi_engine.cli.screen import error_console, reported, screen
from psi_engine.errors import InputError


@app.command()
def validate(
    run_folder: Annotated[
        Path | None, typer.Argument(metavar="RUN", help="Run folder; none with --ground-truth.")
    ] = None,
    parts: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="PART", help="Parts by name; none = all.", autocompletion=completion.parts
        ),
    ] = None,
    ground_truth: Annotated[
        bool,
        typer.Option("--ground-truth", help="Judge every measure on units whose kind is known."),
    ] = False,
    data: Annotated[
        str | None, typer.Option(help="Labelled images; with none, the demo world.")
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="Classifier on whose logits units are planted.")
    ] = None,
    weights: Weights = None,
    encoder: Annotated[
        str | None, typer.Option(help="As for run (default open_clip:ViT-B-32).")
    ] = None,
    encoder_weights: EncoderWeights = None,
    coarse: Annotated[
        str | None, typer.Option(help="JSON or CSV: class name or label to its parent.")
    ] = None,
    max_images: MaxImages = None,
    image_size: ImageSize = None,
    sets: Annotated[int | None, typer.Option(help="Image sets per kind (default 100).")] = None,
    units: Annotated[int | None, typer.Option(help="Planted units per kind (100).")] = None,
    top_k: Annotated[
        int | None, typer.Option(help="Patches per set and unit, K (50; demo 20).")
    ] = None,
    replicates: Replicates = None,
    channel_replicates: Annotated[
        int | None,
        typer.Option(
            help="At most so many where each channel needs its own (20; ground truth 50)."
        ),
    ] = None,
    null_channels: Annotated[
        int | None, typer.Option(help="Random sets per layer scored like channels (200).")
    ] = None,
    second_encoder: Annotated[
        str | None, typer.Option(help="Encoder to compare the run's with, as for run.")
    ] = None,
    second_encoder_weights: Annotated[
        str | None, typer.Option(help="Pretrained tag or file of it.")
    ] = None,
    examples: Annotated[
        int | None, typer.Option(help="Channels shown of each kind and layer (2).")
    ] = None,
    variants: Annotated[
        bool | None,
        typer.Option("--variants", help="Stability also of what must be mined or cut anew."),
    ] = None,
    bootstrap: Annotated[
        int | None, typer.Option(help="Resamples per interval (1000; ground truth 400).")
    ] = None,
    device: Device = None,
    seed: Seed = None,
    out: Out = None,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Make the tables and figures of a run that show how far its scores can be trusted."""
    with reported(debug, resumable=True):
        told = ("run_folder", "parts", "ground_truth", "as_json", "quiet", "debug")
        given = {
            name: value
            for name, value in locals().items()
            if value is not None and name not in (*told, "told")
        }
        if ground_truth and run_folder is not None:
            raise InputError(
                "--ground-truth takes no run", got=str(run_folder), fix="leave one of them out"
            )
        if ground_truth:
            _ground_truth(given, as_json, quiet)
        elif run_folder is None:
            raise InputError(
                "nothing to validate is named", fix="give a run folder, or --ground-truth"
            )
        else:
            _validate(run_folder, parts or [], given, as_json, quiet)


def _validate(
    run: Path, parts: list[str], given: dict[str, Any], as_json: bool, quiet: bool
) -> None:
    from psi_engine.report.terminal import show_parts
    from psi_engine.validation import validate_run
    from psi_engine.validation.part import Options

    _refuse(given.keys() - _names(Options), "with a run", "with --ground-truth only")
    console = error_console()
    with contextlib.redirect_stdout(sys.stderr), screen(console, quiet or as_json) as progress:
        outcomes = validate_run(run, parts, Options(**given), progress=progress)
    if as_json:
        found = {"run": str(run), "parts": [asdict(outcome) for outcome in outcomes]}
        typer.echo(json.dumps(found, indent=2, allow_nan=False))
    else:
        if not quiet:
            show_parts(console, [asdict(outcome) for outcome in outcomes])
        typer.echo(run / "validation")
    if any(outcome.status == "failed" for outcome in outcomes):
        raise typer.Exit(1)


def _ground_truth(given: dict[str, Any], as_json: bool, quiet: bool) -> None:
    from psi_engine.report.terminal import show_ground_truth
    from psi_engine.validation import GroundTruthConfig, run_ground_truth, summarise

    _refuse(given.keys() - _names(GroundTruthConfig), "with --ground-truth", "with a run only")
    missing = {"data", "model"} - given.keys()
    if len(missing) == 1:
        raise InputError(
            "data and model belong together",
            got=f"no --{missing.pop()}",
            expected="both, or neither for the demo world",
        )
    if missing:
        foreign = given.keys() & {"weights", "encoder", "encoder_weights", "image_size"}
        whole = "the demo world as it is, or data and a model too"
        _refuse(foreign, "without --data and --model", whole)
        config = GroundTruthConfig.demo(**given)
    else:
        config = GroundTruthConfig(**given)
    console = error_console()
    with contextlib.redirect_stdout(sys.stderr), screen(console, quiet or as_json) as progress:
        summary = summarise(run_ground_truth(config, progress=progress))
    if as_json:
        typer.echo(json.dumps(summary, indent=2, allow_nan=False))
        return
    if not quiet:
        show_ground_truth(console, summary)
    typer.echo(summary["ground_truth"])


def _names(settings: Any) -> set[str]:
    return {field.name for field in fields(settings)}


def _refuse(options: Set[str], where: str, expected: str) -> None:
    if options:
        named = ", ".join(f"--{name.replace('_', '-')}" for name in sorted(options))
        raise InputError(f"{named} {where}", expected=expected)
