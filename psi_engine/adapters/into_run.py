"""From another tool's files to a run folder, in one call.

What the files hold decides how far they go by themselves:

=====================================  ==========================================================
embeddings of top examples             scored as ``psi-engine score FILE`` does
activations and image embeddings       top images, pool, nulls and scores, with no model run
activations, or ids of top images      sites; with ``data`` and ``encoder`` on to the scores
pictures of top examples               with ``encoder`` on to the scores
=====================================  ==========================================================

With ``model`` the sites of zennit-crp get their receptive fields, and ``psi-engine run`` with the
same model and data goes on from the folder.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from psi_engine import artifacts
from psi_engine.adapters.contents import Contents
from psi_engine.adapters.given import (
    content_fingerprint,
    given_embeddings,
    given_encoder,
    known_images,
    own_images,
    place_notes,
    pool_notes,
)
from psi_engine.adapters.mined import (
    grid_field,
    layer_of_activations,
    layer_of_examples,
    whole_image,
)
from psi_engine.adapters.pictures import ExemplarPictures
from psi_engine.adapters.registry import read
from psi_engine.config import MineConfig, RunConfig
from psi_engine.data import ImageSource, needs_download, open_source, require_download
from psi_engine.distributed import LOCK, only_job
from psi_engine.encoders import Encoder, check_encoder, load_encoder
from psi_engine.errors import InputError
from psi_engine.found import Found, write_mine_stage
from psi_engine.inputs import (
    ImageInputs,
    Inputs,
    check_images,
    choose_vocabulary,
    run_folder,
)
from psi_engine.mining_pass import work_of
from psi_engine.models import LayerChoice
from psi_engine.ops.backend import resolve_backend, resolve_device
from psi_engine.pipeline import run_from
from psi_engine.score_file import score_file
from psi_engine.standins import IMPORTED, SIDE, GivenEmbeddings, NumberedImages, pictures_only
from psi_engine.types import ActivationShape, LayerSites, Mined, Progress


def import_files(
    tool: str,
    paths: Sequence[str | Path],
    *,
    out: str | Path,
    grid: tuple[int, int] | None = None,
    layer: str | None = None,
    drop_missing: bool = False,
    text: Path | None = None,
    labels: Path | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> artifacts.Run:
    """Make a run folder of another tool's files, as far as they go.

    Parameters
    ----------
    tool : str
        A name of :data:`psi_engine.adapters.TOOLS`.
    paths : sequence of str or Path
        As the tool's module says.
    out : str or Path
        The run folder.
    grid, layer, drop_missing
        As :class:`psi_engine.adapters.ReadOptions`.
    text, labels : Path, optional
        Only for embeddings of top examples: as for :func:`psi_engine.score_file.score_file`.
    **options
        Settings of a run (:meth:`psi_engine.config.RunConfig.from_options`); ``model``, ``data``
        and ``encoder`` may be left out where the files do without.

    Returns
    -------
    Run
        Scored; or, of sites without an encoder, with its mining stage alone.

    Raises
    ------
    InputError
        Unsafe, broken or unfit files, ids that are not in the data, missing inputs: before
        anything is written.
    """
    for key in ("model", "data", "encoder"):
        if options.get(key) is None:
            options[key] = IMPORTED
    config = RunConfig.from_options(**{**options, "layers": [tool], "out": str(out)})
    resolve_backend(config.backend, resolve_device(config.device))
    if config.encoder != IMPORTED:
        check_encoder(config.encoder, config.encoder_weights)
    source = _source(config, progress)
    contents = read(
        tool,
        *paths,
        grid=grid,
        images=None if source is None else len(source),
        top_k=config.mine.top_k,
        layer=layer,
        drop_missing=drop_missing,
    )
    if contents.embedded and not contents.examples:
        return _score_embedded(paths, config, options, text, labels, progress)
    if text is not None or labels is not None:
        raise InputError(
            "texts and labels of files are not used here",
            got="--text" if text is not None else "--labels",
            fix="leave them out; labels come with --data, concepts with --concepts",
        )
    if not contents.examples and not contents.activations:
        raise InputError("the files hold no examples", got=", ".join(map(str, paths)))
    origin = {"tool": tool, "files": [Path(path).name for path in paths], "fingerprint": ""}
    origin["fingerprint"] = content_fingerprint(contents)
    return _from_contents(contents, origin, source, config, progress)


def _from_contents(
    contents: Contents,
    origin: dict[str, Any],
    source: ImageSource | None,
    config: RunConfig,
    progress: Progress | None,
) -> artifacts.Run:
    if source is None:
        contents, source = own_images(contents)
    _require_images(contents, source)
    _require_encoder(contents, source, config)
    config = _settled(contents, config)
    encoder: Encoder | None
    if config.encoder == IMPORTED:
        encoder = given_encoder(contents, origin["fingerprint"])
    else:
        device = resolve_device(config.device)
        encoder = load_encoder(config.encoder, config.encoder_weights, device, config.concepts)
    if config.image_size is None and config.model == IMPORTED:
        config = replace(config, image_size=SIDE if encoder is None else encoder.image_size)
    seen = _seen(contents, origin, source, config, progress)
    side = seen.model.preprocess.image_size
    mined = Mined({name: _sites(contents, name, seen, config) for name in seen.layers})
    embeds = config.encoder != IMPORTED
    notes = (*contents.notes, *place_notes(contents, mined))
    notes += tuple(pool_notes(contents, seen.source, embeds))
    fields = None
    if config.model == IMPORTED:
        fields = {
            name: whole_image(side) if sites.shape.kind == "flat"
            else grid_field(sites.shape.grid, side, config.patches.patch)
            for name, sites in mined.items()
        }  # fmt: skip
    given = given_embeddings(contents) if isinstance(encoder, GivenEmbeddings) else None
    if given is not None and fields is None:
        fields = {name: whole_image(side) for name in mined}
    told = f"sites found by {origin['tool']}: {', '.join(origin['files'])}"
    found = Found(mined, origin, (told, *notes), fields, given)
    if encoder is None:
        return _sites_only(config, seen, found)
    prompts, bank = choose_vocabulary(config, encoder, seen.source)
    inputs = Inputs(**vars(seen), encoder=encoder, prompts=prompts, bank=bank)
    return run_from(config, inputs, found, progress=progress)


def _source(config: RunConfig, progress: Progress | None) -> ImageSource | None:
    if config.data == IMPORTED:
        return None
    if needs_download(config.data):
        require_download(config.data)
    return open_source(config.data, config.max_images, progress)


def _score_embedded(
    paths: Sequence[str | Path],
    config: RunConfig,
    options: dict[str, Any],
    text: Path | None,
    labels: Path | None,
    progress: Progress | None,
) -> artifacts.Run:
    files = [Path(path) for path in paths]
    inside = [
        p for path in files for p in (path.rglob("*.safetensors") if path.is_dir() else [path])
    ]
    if len(inside) != 1:
        raise InputError(
            "one concept database is scored at a time", got=", ".join(p.name for p in inside)
        )
    if config.data != IMPORTED or config.encoder != IMPORTED:
        raise InputError(
            "embeddings without image ids do not say which images they are of",
            got=inside[0].name,
            fix="leave out --data and --encoder, or give the cache as well",
        )
    changes = {
        name: options[name] for name in ("replicates", "seed") if options.get(name) is not None
    }
    return score_file(
        inside[0],
        labels=labels,
        text=text,
        preset=options.get("preset") or "calibrated",
        changes=changes,
        device=config.device,
        out=Path(str(config.out)),
        progress=progress,
    )


def _require_images(contents: Contents, source: ImageSource) -> None:
    for part in contents.examples:
        part.require_inside(len(source))
    tables = {f"activations of {name}": rows for name, rows in contents.activations.items()}
    if contents.image_embeddings is not None:
        tables["image embeddings"] = contents.image_embeddings
    for name, values in tables.items():
        if len(values) != len(source):
            raise InputError(
                f"the {name} are not of these images",
                got=f"{len(values)} rows for {len(source)} images",
                expected="one row an image",
                fix="give the --data that the tool used, without --max-images",
            )


def _require_encoder(contents: Contents, source: ImageSource, config: RunConfig) -> None:
    if config.encoder != IMPORTED and isinstance(source, NumberedImages):
        raise InputError(
            "there are no pictures to embed",
            got=f"--encoder {config.encoder} without --data",
            fix="give --data, or leave --encoder out to score the embeddings of the files",
        )
    if config.encoder == IMPORTED and config.concepts is not None:
        raise InputError(
            "imported embeddings cannot name concepts of a file",
            got=f"--concepts {config.concepts}",
            fix="leave --concepts out, or give --encoder and --data",
        )
    if isinstance(source, ExemplarPictures) and config.encoder == IMPORTED:
        raise InputError("the pictures need an encoder", got="no --encoder", fix="give --encoder")


def _settled(contents: Contents, config: RunConfig) -> RunConfig:
    """The settings with the layers, channels and numbers of examples that the files have."""
    layers = [n for n in contents.layers if n in contents.activations or _part(contents, n)]
    channels, width = [], 0
    for name in layers:
        part = _part(contents, name)
        if name in contents.activations or part is None:
            width = max(width, config.mine.top_k)
            continue
        width = max(width, part.image_ids.shape[1])
        if not torch.equal(part.numbers, torch.arange(len(part.numbers))):
            channels.append(f"{name}:{','.join(map(str, part.numbers.tolist()))}")
    mine: MineConfig = replace(config.mine, top_k=width, pool=max(config.mine.pool, width))
    return replace(config, layers=layers, channels=channels, mine=mine)


def _part(contents: Contents, layer: str) -> Any:
    return next((part for part in contents.examples if part.layer == layer), None)


def _seen(
    contents: Contents,
    origin: dict[str, Any],
    source: ImageSource,
    config: RunConfig,
    progress: Progress | None,
) -> ImageInputs:
    """Model and images: the real ones, or stand-ins."""
    if config.model != IMPORTED:
        if isinstance(source, NumberedImages | ExemplarPictures):
            raise InputError(
                "a model is of no use without its images",
                got=f"--model {config.model} without --data",
                fix="give --data, or leave --model out",
            )
        seen = check_images(config, progress)
        for name in seen.layers:
            _require_fit(contents, name, seen)
        return seen
    device = resolve_device(config.device)
    shapes, channels = {}, {}
    for name in config.layers:
        part = _part(contents, name)
        if name in contents.activations or part is None:
            channels[name] = torch.arange(contents.activations[name].shape[1])
        else:
            channels[name] = part.numbers
        shapes[name] = ActivationShape("flat", int(channels[name].max()) + 1, (1, 1))
    assert config.image_size is not None
    model = pictures_only(origin["fingerprint"], config.image_size)
    backend = resolve_backend(config.backend, device)
    return ImageInputs(device, backend, model, LayerChoice(shapes, {}, {}), channels, source)


def _require_fit(contents: Contents, name: str, seen: ImageInputs) -> None:
    """Refuse files of another layer than the model's, or with positions outside its map."""
    part, shape = _part(contents, name), seen.shapes[name]
    rows = contents.activations.get(name)
    count = rows.shape[1] if rows is not None else len(part.numbers)
    if count != len(seen.channels[name]):
        raise InputError(
            f"the files and the model have other channels in {name}",
            got=f"{count} in the files",
            expected=f"{len(seen.channels[name])}, as the model",
            fix="give the --model that the tool looked at",
        )
    if rows is None and part.positions is not None and shape.kind != "tokens":
        if part.grid is not None and tuple(part.grid) != tuple(shape.grid):
            raise InputError(
                f"the files and the model have other maps of {name}",
                got=f"{part.grid[0]} × {part.grid[1]} in the files or by --grid",
                expected=f"{shape.grid[0]} × {shape.grid[1]}, as the model",
                fix="give the --image-size that the tool used",
            )
        most = shape.grid[0] * shape.grid[1]
        if bool((part.positions >= most).any()):
            raise InputError(
                f"positions of {name} lie outside the model's map",
                got=f"index {int(part.positions.max())}",
                expected=f"below {most}, for {shape.grid[0]} × {shape.grid[1]}",
                fix="give the --image-size that the tool used",
            )


def _sites(contents: Contents, name: str, seen: ImageInputs, config: RunConfig) -> LayerSites:
    images = len(seen.source)
    if name in contents.activations:
        return layer_of_activations(name, contents.activations[name], config.mine)
    part, shape = _part(contents, name), seen.shapes[name]
    whole = ActivationShape("flat", shape.channels, (1, 1))
    if config.model != IMPORTED:
        placed = part.positions is not None and shape.kind == "map"
        return layer_of_examples(part, shape if placed else whole, images, config.mine)
    if part.positions is not None and part.grid and isinstance(config.patches.patch, int):
        whole = ActivationShape("map", shape.channels, part.grid)
    known = known_images(contents, part, seen.source, config.encoder != IMPORTED)
    return layer_of_examples(part, whole, images, config.mine, known)


def _sites_only(config: RunConfig, seen: ImageInputs, found: Found) -> artifacts.Run:
    """Write the sites alone, for the same command with an encoder to go on from."""
    out = run_folder(config)
    with only_job(out / LOCK):
        folder = artifacts.RunFolder(out, seen.identity | found.identity)
        write_mine_stage(folder, work_of(config, seen).key, found)
    return artifacts.open_run(out)
