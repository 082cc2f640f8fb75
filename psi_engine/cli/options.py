"""Options that several commands share, and how lists are written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any

import typer

from psi_engine import config
from psi_engine.cli import completion
from psi_engine.errors import InputError

Out = Annotated[str | None, typer.Option(help="Folder to write.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress, no tables.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
Device = Annotated[str | None, typer.Option(help="auto, cpu, cuda or cuda:N.")]
Seed = Annotated[int | None, typer.Option(help="Seed of every random draw.")]
Replicates = Annotated[int | None, typer.Option(help="Draws per null, M.")]
Weights = Annotated[str | None, typer.Option(help="default, none or a file.")]
MaxImages = Annotated[int | None, typer.Option(help="Use so many, evenly spread.")]
ImageSize = Annotated[int | None, typer.Option(help="Side of the model's input.")]
NoReport = Annotated[bool, typer.Option("--no-report", help="Leave the report page out.")]
EncoderWeights = Annotated[str | None, typer.Option(help="Pretrained tag or file.")]
Preset = Annotated[
    str | None,
    typer.Option(
        help="calibrated (default) or paper.", autocompletion=completion.choices(config.Preset)
    ),
]


def over_file(file: Path | None, given: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a TOML file with the options of the command line over them.

    Raises
    ------
    InputError
        The file is not there or no TOML; or a preset is given over a file that leaves it nothing
        to set, as those of run folders do.
    """
    from psi_engine.settings import read_settings

    options: dict[str, Any] = {} if file is None else read_settings(file)
    preset = given.get("preset")
    if preset is not None and _leaves_nothing(options):
        raise InputError(
            "the preset would change nothing",
            got=f"--preset {preset} and {file}, which sets everything a preset does",
            fix="leave --preset out, or delete the lines it should set",
        )
    return options | {name: value for name, value in given.items() if value is not None}


def _leaves_nothing(options: Mapping[str, Any]) -> bool:
    section = options.get("score")
    found = {*options, *(section if isinstance(section, Mapping) else ())}
    return {f.name for f in fields(config.ScoreConfig) if f.default is not None} <= found


def commas(text: str) -> list[str]:
    """Split at commas; empty parts go."""
    return [part.strip() for part in text.split(",") if part.strip()]


def channel_specs(text: str) -> list[str]:
    """Split ``a:0-3,7,b:5`` into ``a:0-3,7`` and ``b:5``: a part without a layer goes on."""
    specs: list[str] = []
    for part in commas(text):
        if specs and ":" not in part:
            specs[-1] += f",{part}"
        else:
            specs.append(part)
    return specs
