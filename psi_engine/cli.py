"""The command line: parse the options, make a config, call one function, show the result."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import tomllib
from collections.abc import Iterator, Set
from dataclasses import asdict, fields
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from psi_engine import __version__
from psi_engine.errors import InputError, PsiEngineError, RankError

app = typer.Typer(
    name="psi-engine",
    help="Null-calibrated polysemanticity scores for every neuron of a vision model.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

_Out = Annotated[str | None, typer.Option(help="Folder to write.")]
_Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")]
_Quiet = Annotated[bool, typer.Option("--quiet", help="No progress, no tables.")]
_Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
_Device = Annotated[str | None, typer.Option(help="auto, cpu, cuda or cuda:N.")]
_Seed = Annotated[int | None, typer.Option(help="Seed of every random draw.")]
_Replicates = Annotated[int | None, typer.Option(help="Draws per null, M.")]
_Weights = Annotated[str | None, typer.Option(help="default, none or a file.")]
_MaxImages = Annotated[int | None, typer.Option(help="Use so many, evenly spread.")]
_ImageSize = Annotated[int | None, typer.Option(help="Side of the model's input.")]
_EncoderWeights = Annotated[str | None, typer.Option(help="Pretrained tag or file.")]
_Preset = Annotated[str | None, typer.Option(help="calibrated (default) or paper.")]


def main() -> None:
    """Run the command line; ``python -m psi_engine`` and ``psi-engine`` both end up here."""
    # Threads that wait for each other by spinning take three times as long on a machine that
    # does something else too. It must be said before torch loads OpenMP.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    app()


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"psi-engine {__version__}")
        raise typer.Exit


@app.callback()
def _program(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True)] = False,
) -> None:
    pass


@app.command()
def run(
    model: Annotated[
        str | None,
        typer.Option(help="torchvision name, timm:NAME, open_clip:NAME or package.module:factory."),
    ] = None,
    weights: _Weights = None,
    layers: Annotated[
        str | None, typer.Option(help="Module names, globs or all, separated by commas.")
    ] = None,
    latents: Annotated[
        str | None,
        typer.Option(
            help="LAYER=package.module:factory: an autoencoder whose latents are the channels of "
            "a layer latents.LAYER."
        ),
    ] = None,
    channels: Annotated[
        str | None, typer.Option(help="Subset, such as layer3:0-31,layer4:3,17.")
    ] = None,
    data: Annotated[
        str | None, typer.Option(help="Image folder, Parquet file or folder, or tiny-imagenet.")
    ] = None,
    max_images: _MaxImages = None,
    image_size: _ImageSize = None,
    encoder: Annotated[
        str | None,
        typer.Option(
            help="open_clip:NAME (default ViT-B-32), timm:NAME, classifier:NAME or "
            "package.module:factory."
        ),
    ] = None,
    encoder_weights: _EncoderWeights = None,
    concepts: Annotated[str | None, typer.Option(help="File of concepts, one a line.")] = None,
    preset: _Preset = None,
    top_k: Annotated[int | None, typer.Option(help="Patches per channel, K.")] = None,
    replicates: _Replicates = None,
    patch: Annotated[
        str | None, typer.Option(help="effective, theoretical or a side in pixels.")
    ] = None,
    sites: Annotated[str | None, typer.Option(help="per-image or all.")] = None,
    precision: Annotated[
        str | None, typer.Option(help="Of mining: fp32, tf32, fp16, bf16 or exact-fp16.")
    ] = None,
    memory: Annotated[
        int | None, typer.Option(help="Bytes mining and scoring may use beside the model.")
    ] = None,
    batch_size: Annotated[int | None, typer.Option(help="Images loaded together.")] = None,
    workers: Annotated[int | None, typer.Option(help="Processes that decode images.")] = None,
    device: _Device = None,
    seed: _Seed = None,
    out: _Out = None,
    shard: Annotated[
        str | None, typer.Option(help="i/n: only mine that share of the images, for merge.")
    ] = None,
    config: Annotated[Path | None, typer.Option(help="TOML file of settings; options win.")] = None,
    as_json: _Json = False,
    quiet: _Quiet = False,
    debug: _Debug = False,
) -> None:
    """Mine, embed, score and test every channel of the named layers of a model."""
    with _reported(debug, resumable=True):
        options = _options(config, {**locals(), "config": None, "shard": None})
        if shard is None:
            _run(options, as_json, quiet)
        else:
            _mine_shard(options, shard, as_json, quiet)


@app.command()
def merge(
    shards: Annotated[
        list[Path], typer.Argument(metavar="SHARD...", help="Files of --shard, or their folders.")
    ],
    out: Annotated[str, typer.Option(help="Run folder to go on from.")],
    as_json: _Json = False,
    quiet: _Quiet = False,
    debug: _Debug = False,
) -> None:
    """Join the shards of a job array into a run folder, from which `run` goes on."""
    with _reported(debug):
        from psi_engine.mining_pass import merge_shards

        def tell(text: str) -> None:
            if not quiet:
                sys.stderr.write(f"note: {text}\n")

        folder = merge_shards(shards, Path(out), tell)
        tell(f"every image is mined; the same run command with --out {folder} goes on from here")
        typer.echo(json.dumps({"run": str(folder)}) if as_json else str(folder))


@app.command()
def demo(
    out: _Out = "runs/demo",
    seed: _Seed = None,
    as_json: _Json = False,
    quiet: _Quiet = False,
    debug: _Debug = False,
) -> None:
    """Run on the bundled miniature world: no network, no GPU; its truth is known."""
    with _reported(debug, resumable=True):
        from psi_engine import demo as world

        options = dict(world.RUN_OPTIONS) | {"out": out, "seed": seed}
        _run(options, as_json, quiet, closing=world.judge)


@app.command()
def score(
    file: Annotated[Path, typer.Argument(help="npz, safetensors or parquet with `embeddings`.")],
    labels: Annotated[Path | None, typer.Option(help="npy/npz: (channels, patches) ints.")] = None,
    text: Annotated[Path | None, typer.Option(help="npy/npz: text embeddings.")] = None,
    pool: Annotated[Path | None, typer.Option(help="npy/npz: reference patches.")] = None,
    preset: _Preset = None,
    replicates: _Replicates = None,
    device: _Device = None,
    seed: _Seed = None,
    out: _Out = None,
    as_json: _Json = False,
    quiet: _Quiet = False,
    debug: _Debug = False,
) -> None:
    """Score embeddings another tool made."""
    with _reported(debug):
        from psi_engine.report.tables import summarise
        from psi_engine.score_file import score_file

        console = _console()
        changes = {"replicates": replicates, "seed": seed}
        with _screen(console, quiet or as_json) as progress:
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
        _finish(console, summarise(result), as_json, quiet)


@app.command()
def validate(
    run_folder: Annotated[
        Path | None, typer.Argument(metavar="RUN", help="Run folder; none with --ground-truth.")
    ] = None,
    parts: Annotated[
        list[str] | None, typer.Argument(metavar="PART", help="Parts by name; none = all.")
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
    weights: _Weights = None,
    encoder: Annotated[
        str | None, typer.Option(help="As for run (default open_clip:ViT-B-32).")
    ] = None,
    encoder_weights: _EncoderWeights = None,
    coarse: Annotated[
        str | None, typer.Option(help="JSON or CSV: class name or label to its parent.")
    ] = None,
    max_images: _MaxImages = None,
    image_size: _ImageSize = None,
    sets: Annotated[int | None, typer.Option(help="Image sets per kind (default 100).")] = None,
    units: Annotated[int | None, typer.Option(help="Planted units per kind (100).")] = None,
    top_k: Annotated[
        int | None, typer.Option(help="Patches per set and unit, K (50; demo 20).")
    ] = None,
    replicates: _Replicates = None,
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
    device: _Device = None,
    seed: _Seed = None,
    out: _Out = None,
    as_json: _Json = False,
    quiet: _Quiet = False,
    debug: _Debug = False,
) -> None:
    """Make the tables and figures of a run that show how far its scores can be trusted."""
    with _reported(debug, resumable=True):
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
    seed: _Seed = None,
    as_json: _Json = False,
    quiet: _Quiet = False,
    debug: _Debug = False,
) -> None:
    """Swap patches in the channels' images and test whether a cluster's patch moves its channel."""
    with _reported(debug, resumable=True):
        from psi_engine.causal import SwapConfig, summarise
        from psi_engine.causal import swap as run_swaps
        from psi_engine.report.terminal import show_swaps

        given: dict[str, Any] = {
            "top": top, "hosts": hosts, "blend": blend, "per_channel": per_channel,
            "swap_patch": swap_patch, "bootstrap": bootstrap, "seed": seed,
            "channels": None if channels is None else tuple(_channel_specs(channels)),
        }  # fmt: skip
        config = SwapConfig(**{name: x for name, x in given.items() if x is not None})
        console = _console()
        with contextlib.redirect_stdout(sys.stderr), _screen(console, quiet or as_json) as told:
            summary = summarise(run_swaps(run_folder, config, progress=told))
        if as_json:
            typer.echo(json.dumps(summary, indent=2, allow_nan=False))
            return
        if not quiet:
            show_swaps(console, summary)
        typer.echo(summary["swaps_file"])
        typer.echo(summary["tests_file"])


@app.command()
def bench(
    file: Annotated[Path, typer.Argument(metavar="SUITE", help="TOML file of [[models]].")],
    out: _Out = None,
    as_json: _Json = False,
    quiet: _Quiet = False,
    debug: _Debug = False,
) -> None:
    """Run many models × presets × seeds and compare them; finished runs are kept."""
    with _reported(debug, resumable=True):
        from psi_engine.bench import read_plan, run_suite
        from psi_engine.report.comparison import show as show_comparison

        plan, console, silent = read_plan(file, out), _console(), quiet or as_json

        def screen(title: str) -> Any:
            if not silent:
                console.print(title, highlight=False)
            return _screen(console, silent)

        with contextlib.redirect_stdout(sys.stderr):
            summary = run_suite(plan, screen).summary()
        if not silent:
            show_comparison(console, summary)
        typer.echo(json.dumps(summary, indent=2, allow_nan=False) if as_json else summary["suite"])
        if summary["failed"]:
            raise typer.Exit(1)


@app.command()
def show(
    run_folder: Annotated[Path, typer.Argument(metavar="RUN", help="Run folder.")],
    channel: Annotated[
        str | None, typer.Argument(help="layer:channel, such as layer4:1680; none = the run.")
    ] = None,
    top: Annotated[int, typer.Option(help="Channels listed for a whole run.")] = 10,
    as_json: _Json = False,
    debug: _Debug = False,
) -> None:
    """Show a run, or one of its channels."""
    with _reported(debug):
        from psi_engine.artifacts import open_run
        from psi_engine.report import tables, terminal

        opened = open_run(run_folder)
        if channel is None:
            found = tables.summarise(opened, top)
        else:
            found = tables.channel_details(opened, channel)
        if as_json:
            typer.echo(json.dumps(found, indent=2, allow_nan=False))
        elif channel is None:
            terminal.show_summary(Console(), found)
        else:
            terminal.show_channel(Console(), found)


@app.command()
def doctor(as_json: _Json = False, debug: _Debug = False) -> None:
    """Say what works on this machine, what does not, and the command that mends it."""
    with _reported(debug):
        from psi_engine.doctor import examine
        from psi_engine.report.terminal import show_checks

        checks = examine()
        if as_json:
            typer.echo(json.dumps(checks, indent=2))
        else:
            show_checks(Console(), checks)


def _run(options: dict[str, Any], as_json: bool, quiet: bool, closing: Any = None) -> None:
    from psi_engine.config import RunConfig
    from psi_engine.distributed import launched_rank
    from psi_engine.pipeline import run as run_pipeline
    from psi_engine.report.tables import summarise

    config = RunConfig.from_options(**options)
    console = _console()
    quiet = quiet or launched_rank() > 0
    # Libraries announce their downloads on stdout, which belongs to the result.
    chatter = contextlib.redirect_stdout(sys.stderr)
    with chatter, _screen(console, quiet or as_json) as progress:
        result = run_pipeline(config, progress=progress)
    if launched_rank():  # rank 0 speaks for all
        return
    summary = summarise(result)
    if closing is not None:
        summary["truth"] = closing(result)
    _finish(console, summary, as_json, quiet)


def _mine_shard(options: dict[str, Any], shard: str, as_json: bool, quiet: bool) -> None:
    from psi_engine.config import RunConfig
    from psi_engine.mining_pass import mine_shard
    from psi_engine.shards import parse_share

    share = parse_share(shard)
    config = RunConfig.from_options(**options)
    chatter = contextlib.redirect_stdout(sys.stderr)
    with chatter, _screen(_console(), quiet or as_json) as progress:
        path = mine_shard(config, share, progress)
    typer.echo(json.dumps({"shard": str(path)}) if as_json else str(path))


def _validate(
    run: Path, parts: list[str], given: dict[str, Any], as_json: bool, quiet: bool
) -> None:
    from psi_engine.report.terminal import show_parts
    from psi_engine.validation import validate_run
    from psi_engine.validation.part import Options

    _refuse(given.keys() - _names(Options), "with a run", "with --ground-truth only")
    console = _console()
    with contextlib.redirect_stdout(sys.stderr), _screen(console, quiet or as_json) as progress:
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
    console = _console()
    with contextlib.redirect_stdout(sys.stderr), _screen(console, quiet or as_json) as progress:
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


def _finish(console: Console, summary: dict[str, Any], as_json: bool, quiet: bool) -> None:
    from psi_engine.report.terminal import show_summary, show_truth

    if as_json:
        typer.echo(json.dumps(summary, indent=2, allow_nan=False))
        return
    if not quiet:
        show_summary(console, summary)
        if "truth" in summary:
            show_truth(console, summary["truth"])
    typer.echo(summary["run"])


def _options(file: Path | None, given: dict[str, Any]) -> dict[str, Any]:
    """Merge the options of a TOML file with those of the command line, which win."""
    options: dict[str, Any] = {}
    if file is not None:
        if not file.is_file():
            raise InputError("the config file is not there", got=str(file))
        try:
            options = tomllib.loads(file.read_text(encoding="utf-8"))
        except tomllib.TOMLDecodeError as error:
            raise InputError("the config file is not TOML", got=f"{file}: {error}") from None
        options = {name.replace("-", "_"): value for name, value in options.items()}
    for name in ("as_json", "quiet", "debug"):
        given.pop(name)
    options |= {name: value for name, value in given.items() if value is not None}
    splits = {"layers": _commas, "latents": _commas, "channels": _channel_specs}
    for name, split in splits.items():
        if isinstance(options.get(name), str):
            options[name] = split(options[name])
    if str(options.get("patch", "")).isdigit():
        options["patch"] = int(options["patch"])
    return options


def _commas(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _channel_specs(text: str) -> list[str]:
    """Split ``a:0-3,7,b:5`` into ``a:0-3,7`` and ``b:5``: a part without a layer goes on."""
    specs: list[str] = []
    for part in _commas(text):
        if specs and ":" not in part:
            specs[-1] += f",{part}"
        else:
            specs.append(part)
    return specs


def _console() -> Console:
    return Console(stderr=True)


def _screen(console: Console, quiet: bool) -> Any:
    from psi_engine.report.terminal import ProgressScreen

    return ProgressScreen(console, quiet)


@contextlib.contextmanager
def _reported(debug: bool, *, resumable: bool = False) -> Iterator[None]:
    """Turn errors into one message and an exit code: 1 failed, 2 bad input, 130 interrupted."""
    try:
        yield
    except PsiEngineError as error:
        if debug:
            raise
        if _is_told_here(error):
            sys.stderr.write(f"{_speaker()}error: {error}\n")
        raise typer.Exit(error.exit_code) from None
    except KeyboardInterrupt:
        hint = "; the same command continues where it stopped" if resumable else ""
        if not _speaker():
            sys.stderr.write(f"interrupted{hint}\n")
        raise typer.Exit(130) from None
    except (typer.Exit, typer.Abort):
        raise
    except Exception as error:
        if debug:
            raise
        sys.stderr.write(
            f"{_speaker()}error: {type(error).__name__}: {error}\n"
            "run again with --debug for the traceback\n"
        )
        raise typer.Exit(1) from None


def _speaker() -> str:
    """Say which rank speaks; rank 0 speaks for all."""
    rank = os.environ.get("RANK", "0")
    return "" if rank == "0" else f"rank {rank}: "


def _is_told_here(error: PsiEngineError) -> bool:
    """Whether this rank should tell: not what every rank meets, nor that another one stopped."""
    return not _speaker() or (error.rank is not None and not isinstance(error, RankError))
