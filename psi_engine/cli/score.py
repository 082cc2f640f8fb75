"""``score``: embeddings another tool made."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from psi_engine.cli.options import (
    Debug,
    Device,
    Json,
    Out,
    Preset,
    Quiet,
    Replicates,
    Seed,
    over_file,
)
from psi_engine.cli.program import app
from psi_engine.cli.screen import error_console, finish, reported, screen
from psi_engine.errors import InputError


@app.command()
def score(
    file: Annotated[
        Path | None, typer.Argument(help="npz, safetensors or parquet with `embeddings`.")
    ] = None,
    labels: Annotated[Path | None, typer.Option(help="npy/npz: (channels, patches) ints.")] = None,
    text: Annotated[Path | None, typer.Option(help="npy/npz: text embeddings.")] = None,
    pool: Annotated[Path | None, typer.Option(help="npy/npz: reference patches.")] = None,
    preset: Preset = None,
    replicates: Replicates = None,
    device: Device = None,
    seed: Seed = None,
    out: Out = None,
    config: Annotated[Path | None, typer.Option(help="TOML file of settings; options win.")] = None,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Score embeddings another tool made."""
    with reported(debug):
        from psi_engine.report.tables import summarise
        from psi_engine.score_file import score_file

        given = {
            "file": file, "labels": labels, "text": text, "pool": pool, "device": device,
            "out": out, "preset": preset, "replicates": replicates, "seed": seed,
        }  # fmt: skip
        options = over_file(config, given)
        console = error_console()
        with screen(console, quiet or as_json) as progress:
            result = score_file(**_arguments(options), progress=progress)
        finish(console, summarise(result), as_json, quiet)


def _arguments(options: dict[str, Any]) -> dict[str, Any]:
    """Arguments of :func:`psi_engine.score_file.score_file`; the rest are fields of the scorer."""
    found: dict[str, Any] = {
        name: options.pop(name) for name in ("preset", "device") if name in options
    }
    for name in ("file", "labels", "text", "pool", "out"):
        if name in options:
            found[name] = Path(options.pop(name))
    if "file" not in found:
        raise InputError("no file named", expected="psi-engine score FILE")
    section = options.pop("score", {})
    if not isinstance(section, dict):
        raise InputError("score is no section of settings", got=repr(section), expected="[score]")
    return found | {"changes": section | options}
