"""``swap``: causal patch swaps."""

from __future__ import annotations

import contextlib
import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from psi_engine.cli.options import Debug, Json, Quiet, Seed, channel_specs
from psi_engine.cli.program import app
from psi_engine.cli.screen import error_console, reported, screen


@app.command()
def swap(
    run_folder: Annotated[Path, typer.Argument(metavar="RUN", help="Finished run folder.")],
    top: Annotated[
        int | None, typer.Option(help="Channels of highest PSI per layer (default 10).")
    ] = None,
    channels: Annotated[
        str | None, typer.Option(help="Layers and channels, such as layer3,layer4:3,17.")
    ] = None,
    hosts: Annotated[
        str | None, typer.Option(help="Images swapped into: top, random or both (default).")
    ] = None,
    blend: Annotated[
        str | None, typer.Option(help="Edges: hard, feathered or both (default).")
    ] = None,
    per_channel: Annotated[
        int | None, typer.Option(help="Hosts of each kind per channel (16).")
    ] = None,
    swap_patch: Annotated[
        int | None,
        typer.Option(help="Side of the square (the patch's, at most a third of the image)."),
    ] = None,
    bootstrap: Annotated[int | None, typer.Option(help="Resamples per interval (1000).")] = None,
    seed: Seed = None,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Swap patches in the channels' images and test whether a cluster's patch moves its channel."""
    with reported(debug, resumable=True):
        from psi_engine.causal import SwapConfig, summarise
        from psi_engine.causal import swap as run_swaps
        from psi_engine.report.terminal import show_swaps

        given: dict[str, Any] = {
            "top": top, "hosts": hosts, "blend": blend, "per_channel": per_channel,
            "swap_patch": swap_patch, "bootstrap": bootstrap, "seed": seed,
            "channels": None if channels is None else tuple(channel_specs(channels)),
        }  # fmt: skip
        config = SwapConfig(**{name: x for name, x in given.items() if x is not None})
        console = error_console()
        with contextlib.redirect_stdout(sys.stderr), screen(console, quiet or as_json) as told:
            summary = summarise(run_swaps(run_folder, config, progress=told))
        if as_json:
            typer.echo(json.dumps(summary, indent=2, allow_nan=False))
            return
        if not quiet:
            show_swaps(console, summary)
        typer.echo(summary["swaps_file"])
        typer.echo(summary["tests_file"])
