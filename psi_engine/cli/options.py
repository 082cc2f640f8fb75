"""Options that several commands share, and how lists are written."""

from __future__ import annotations

from typing import Annotated

import typer

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
EncoderWeights = Annotated[str | None, typer.Option(help="Pretrained tag or file.")]
Preset = Annotated[str | None, typer.Option(help="calibrated (default) or paper.")]


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
