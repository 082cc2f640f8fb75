"""``run``, ``merge``, ``demo``: from a model to scores."""

from __future__ import annotations

import contextlib
import json
import sys
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
    NoReport,
    Out,
    Preset,
    Quiet,
    Replicates,
    Seed,
    Weights,
    channel_specs,
    commas,
    over_file,
)
from psi_engine.cli.program import app
from psi_engine.cli.screen import error_console, finish, reported, screen
from psi_engine.config import Precision, Sites


@app.command()
def run(
    model: Annotated[
        str | None,
        typer.Option(
            help="torchvision name, timm:NAME, open_clip:NAME or package.module:factory.",
            autocompletion=completion.models,
        ),
    ] = None,
    weights: Weights = None,
    layers: Annotated[
        str | None, typer.Option(help="Module names, globs or all, separated by commas.")
    ] = None,
    latents: Annotated[
        str | None,
        typer.Option(
            help="LAYER=package.module:factory, an autoencoder whose latents are the channels of "
            "a layer latents.LAYER."
        ),
    ] = None,
    channels: Annotated[
        str | None, typer.Option(help="Subset, such as layer3:0-31,layer4:3,17.")
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            help="Folder of images, Parquet or tars (or one such file), hf:NAME, "
            "package.module:factory of a torch Dataset, or tiny-imagenet."
        ),
    ] = None,
    max_images: MaxImages = None,
    image_size: ImageSize = None,
    encoder: Annotated[
        str | None,
        typer.Option(
            help="open_clip:NAME (default ViT-B-32), timm:NAME, classifier:NAME or "
            "package.module:factory."
        ),
    ] = None,
    encoder_weights: EncoderWeights = None,
    concepts: Annotated[str | None, typer.Option(help="File of concepts, one a line.")] = None,
    preset: Preset = None,
    top_k: Annotated[int | None, typer.Option(help="Patches per channel, K.")] = None,
    replicates: Replicates = None,
    patch: Annotated[
        str | None, typer.Option(help="effective, theoretical or a side in pixels.")
    ] = None,
    sites: Annotated[
        str | None,
        typer.Option(help="per-image or all.", autocompletion=completion.choices(Sites)),
    ] = None,
    precision: Annotated[
        str | None,
        typer.Option(
            help="Of mining: fp32, tf32, fp16, bf16 or exact-fp16 (fp32's sites, by an estimate).",
            autocompletion=completion.choices(Precision),
        ),
    ] = None,
    memory: Annotated[
        int | None, typer.Option(help="Bytes mining and scoring may use beside the model.")
    ] = None,
    batch_size: Annotated[int | None, typer.Option(help="Images loaded together.")] = None,
    workers: Annotated[int | None, typer.Option(help="Processes that decode images.")] = None,
    device: Device = None,
    seed: Seed = None,
    out: Out = None,
    shard: Annotated[
        str | None, typer.Option(help="i/n: only mine that share of the images, for merge.")
    ] = None,
    config: Annotated[Path | None, typer.Option(help="TOML file of settings; options win.")] = None,
    no_report: NoReport = False,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Mine, embed, score and test every channel of the named layers of a model."""
    with reported(debug, resumable=True):
        options = _options(config, {**locals(), "config": None, "shard": None})
        if shard is None:
            _run(options, no_report, as_json, quiet, debug)
        else:
            _mine_shard(options, shard, as_json, quiet)


@app.command()
def merge(
    shards: Annotated[
        list[Path], typer.Argument(metavar="SHARD...", help="Files of --shard, or their folders.")
    ],
    out: Annotated[str, typer.Option(help="Run folder to go on from.")],
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Join the shards of a job array into a run folder, from which `run` goes on."""
    with reported(debug):
        from psi_engine.mining_pass import merge_shards

        def tell(text: str) -> None:
            if not quiet:
                sys.stderr.write(f"note: {text}\n")

        folder = merge_shards(shards, Path(out), tell)
        tell(f"every image is mined; the same run command with --out {folder} goes on from here")
        typer.echo(json.dumps({"run": str(folder)}) if as_json else str(folder))


@app.command()
def demo(
    out: Out = "runs/demo",
    seed: Seed = None,
    no_report: NoReport = False,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Run on the bundled miniature world: no network, no GPU; its truth is known."""
    with reported(debug, resumable=True):
        from psi_engine import demo as world

        options = dict(world.RUN_OPTIONS) | {"out": out, "seed": seed}
        _run(options, no_report, as_json, quiet, debug, closing=world.judge)


def _run(
    options: dict[str, Any],
    no_report: bool,
    as_json: bool,
    quiet: bool,
    debug: bool,
    closing: Any = None,
) -> None:
    from psi_engine.config import RunConfig
    from psi_engine.distributed import launched_rank
    from psi_engine.pipeline import run as run_pipeline
    from psi_engine.report.tables import summarise

    config = RunConfig.from_options(**options)
    console = error_console()
    quiet = quiet or launched_rank() > 0
    # Libraries announce their downloads on stdout, which belongs to the result.
    chatter = contextlib.redirect_stdout(sys.stderr)
    with chatter, screen(console, quiet or as_json) as progress:
        result = run_pipeline(config, progress=progress)
    if launched_rank():  # rank 0 speaks for all
        return
    summary = summarise(result)
    if closing is not None:
        summary["truth"] = closing(result)
    if not no_report:
        from psi_engine.cli.report import add_report  # after `run`, which --help names first

        summary["report"] = add_report(console, result.path, quiet or as_json, debug)
    finish(console, summary, as_json, quiet)


def _mine_shard(options: dict[str, Any], shard: str, as_json: bool, quiet: bool) -> None:
    from psi_engine.config import RunConfig
    from psi_engine.mining_pass import mine_shard
    from psi_engine.shards import parse_share

    share = parse_share(shard)
    config = RunConfig.from_options(**options)
    chatter = contextlib.redirect_stdout(sys.stderr)
    with chatter, screen(error_console(), quiet or as_json) as progress:
        path = mine_shard(config, share, progress)
    typer.echo(json.dumps({"shard": str(path)}) if as_json else str(path))


def _options(file: Path | None, given: dict[str, Any]) -> dict[str, Any]:
    """Merge the options of a TOML file with those of the command line, which win."""
    for name in ("no_report", "as_json", "quiet", "debug"):
        given.pop(name)
    options = over_file(file, given)
    splits = {"layers": commas, "latents": commas, "channels": channel_specs}
    for name, split in splits.items():
        if isinstance(options.get(name), str):
            options[name] = split(options[name])
    if str(options.get("patch", "")).isdigit():
        options["patch"] = int(options["patch"])
    return options
