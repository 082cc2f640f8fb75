"""Mine the sites that excite every channel of the named layers, in one pass over the images.

The forward pass runs in micro-batches of one fixed size (:data:`MICRO_BATCH`), the last one
padded: real networks differ by about 1e-5 between batch shapes, so a batch size chosen for
loading would otherwise change which sites win. Within a fixed shape an image's activations do
not depend on its place in the batch or on its neighbours.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from psi_engine.config import MineConfig
from psi_engine.data import CorruptImage, ImageSource, Preprocess, open_source
from psi_engine.errors import DataError, InputError
from psi_engine.hooks import evaluating
from psi_engine.mining.folding import folded
from psi_engine.mining.journal import Journal
from psi_engine.mining.miner import Miner
from psi_engine.mining.passes import layer_passes, loading_bytes
from psi_engine.mining.precision import arithmetic, candidate_precision, require_precision
from psi_engine.mining.refine import Refinement
from psi_engine.mining.shelf import shelf
from psi_engine.mining.state import pack_state, unpack_state
from psi_engine.mining.sweep import Sweep, Take, prepare
from psi_engine.models import LoadedModel, choose_layers, resolve_layers
from psi_engine.ops.backend import resolve_device
from psi_engine.types import LayerSites, Mined, Progress

MINING = "mining"
"""What progress is told of; ``exact-fp16`` goes on with ``refining``."""
MICRO_BATCH = {"cpu": 16, "cuda": 128}
"""Images in every forward pass, by device type. Part of what the activations' bits depend on."""


def mine(
    model: nn.Module | LoadedModel,
    images: ImageSource | Dataset[Any] | str | Path,
    layers: str | Sequence[str],
    config: MineConfig | None = None,
    *,
    channels: Mapping[str, Tensor] | None = None,
    preprocess: Preprocess | None = None,
    device: str | torch.device = "auto",
    workers: int = 0,
    progress: Progress | None = None,
    skipped: dict[int, str] | None = None,
    notes: list[str] | None = None,
    checkpoint: Callable[[dict[str, Tensor]], None] | None = None,
    checkpoint_every: int = 4096,
    state: Mapping[str, Tensor] | None = None,
    indices: Tensor | None = None,
    inherited: Tensor | None = None,
    finish: Callable[[Mapping[str, Miner]], Mapping[str, LayerSites]] | None = None,
    scratch: Path | None = None,
) -> Mined:
    """Find the top, bottom, random and pool sites of each channel of some layers, exactly.

    Parameters
    ----------
    model : nn.Module or LoadedModel
        Moved to ``device``; run in eval mode. Its modes are put back.
    images : ImageSource, Dataset, str or Path
        Anything :func:`psi_engine.data.open_source` takes. Tensors of a Dataset go to the model
        as they are, images through ``preprocess``.
    layers : sequence of str
        Module names, globs or ``all``, as for :func:`psi_engine.models.choose_layers`, which
        leaves out what a glob finds and cannot be mined.
    config : MineConfig, optional
    channels : mapping of layer name to int64 (n,), optional
        Channels to keep; layers not named keep all. A channel's sites do not depend on it.
    preprocess : Preprocess, optional
        None = the one of a LoadedModel.
    device : str or torch.device
    workers : int
        Processes that decode images.
    progress : callable, optional
        ``progress("mining", images done, images in all)``. If it has a method ``note(what,
        text)``, that is told whether decoding or the model is the bottleneck.
    skipped : dict, optional
        Filled with image id → reason for images that could not be read.
    notes : list, optional
        Filled with what the caller should know: what ``exact-fp16`` certified and how; on CUDA
        which batch norms are folded into convolutions.
    checkpoint : callable, optional
        Given a flat dict of CPU tensors, enough to continue, after every ``checkpoint_every``
        images (rounded up to whole micro-batches); to be written down or copied at once.
    state : mapping, optional
        What ``checkpoint`` was last given by a run with the same model, images and settings.
    indices : Tensor, optional
        int64 (n,), ascending ids of the images to look at, a shard of them; None = all. A
        ``state`` holds what was found in those below its ``position``.
    inherited : Tensor, optional
        int64 (n,), ids of the images that ``state`` covers beside these.
    finish : callable, optional
        Given the miners by layer when their images are done, returns the sites of each layer:
        where shards are joined. None = what the miners found.
    scratch : Path, optional
        Folder for what layers have kept that are not in the pass; None = the system's.

    Returns
    -------
    Mined
        One :class:`~psi_engine.types.LayerSites` per layer, in the order asked for. A data set
        of fewer sites than K gives short sets: the other slots hold image id −1 and NaN.

    Raises
    ------
    InputError
        Before any forward pass: an unknown layer or channel, images without a preprocess, a
        state of other work, a device that is not there.
    CorruptDataError
        Too many unreadable images.

    Notes
    -----
    Order of the top set: value descending, then image id, u, v ascending; −0 counts as +0; NaN
    and infinite sites are left out and counted in ``stats.nonfinite``. Nothing depends on
    ``batch_size``, ``workers``, or on being interrupted and continued. What ``config.memory``
    bounds is told by :mod:`psi_engine.mining.passes`.
    """
    config = MineConfig() if config is None else config
    where = resolve_device(device)
    module = model.module if isinstance(model, LoadedModel) else model
    if preprocess is None and isinstance(model, LoadedModel):
        preprocess = model.preprocess
    patterns = [layers] if isinstance(layers, str) else list(layers)
    names = resolve_layers(module, patterns)
    subsets = dict(channels or {})
    if stray := sorted(subsets.keys() - set(names)):
        raise InputError(
            "channels named for layers that are not mined", got=stray, expected=f"of {names}"
        )
    source = open_source(images)
    skipped = {} if skipped is None else skipped
    preprocess = _known_preprocess(source, preprocess)
    micro = MICRO_BATCH[where.type]
    require_precision(config.precision, where)
    with evaluating(module.to(where)), shelf(scratch) as resting:
        view = _first(source, preprocess)
        first = prepare(view[None], preprocess, where, 1)
        with arithmetic("fp32", where):
            # A layer whose channels are named is named in full, whatever globs find.
            shapes = choose_layers(module, [*patterns, *subsets], first).shapes
            names = list(shapes)
            network = module
            if where.type == "cuda":
                network, told_of_norms = folded(module, names, first)
                if notes is not None:
                    notes += told_of_norms
        loading = loading_bytes(view, first, config.batch_size, workers, micro)
        passes = layer_passes(shapes, config, where, micro, subsets, loading)
        apart = len(passes) > 1
        miners: dict[str, Miner] = {}
        done = 0
        for name in names:
            miner = Miner(name, shapes[name], config, subsets.get(name), where)
            if state is not None:
                done = unpack_state(state, {name: miner}, skipped, len(source))
            if apart:
                resting.put(miner)
            miners[name] = miner
        known_before = set(skipped)
        shard = torch.arange(len(source)) if indices is None else indices
        saved = seen = int(torch.searchsorted(shard, done))
        remaining = shard[saved:]
        sweep = Sweep(
            network, source, preprocess, where, micro, shapes, config.batch_size, workers, skipped
        )
        if state is not None:
            sweep.inherit(shard[:saved], *([] if inherited is None else [inherited]))
        turns = ((candidate_precision(config.precision), _into(miners)),)
        # All layers of a block of images are done before the next block, so that a saved state
        # covers the same images in every layer.
        for block in remaining.split(checkpoint_every if apart else max(1, len(remaining))):
            for number, group in enumerate(passes):
                for name in group if apart else ():
                    resting.take(miners[name], where)
                for last in sweep.over(block, group, turns):
                    if number + 1 < len(passes):
                        continue
                    done = last + 1
                    seen = int(torch.searchsorted(shard, done))
                    _tell(progress, sweep, seen, len(shard))
                    if checkpoint is not None and not apart and seen - saved >= checkpoint_every:
                        checkpoint(pack_state(miners, _known(skipped, done, known_before), done))
                        saved = seen
                for name in group if apart else ():
                    resting.put(miners[name])
            if checkpoint is not None and apart and len(block):
                done = int(block[-1]) + 1
                checkpoint(pack_state(miners, _known(skipped, done, known_before), done))
        if progress is not None and seen < len(shard):  # the last images could not be read
            progress(MINING, len(shard), len(shard))
        if config.precision == "exact-fp16":
            # Miners that were continued hold candidates of images that are not mined here.
            known = shard if inherited is None else torch.cat([inherited, shard]).unique()
            end = int(shard[-1]) + 1 if len(shard) else done

            def save(refining: dict[str, Tensor]) -> None:
                if checkpoint is not None:
                    checkpoint(pack_state(miners, skipped, end) | refining)

            journal = Journal(known, save, checkpoint_every)
            journal.read(state)
            for group in passes:
                names = [name for name in group if name not in journal.refined]
                if not names:
                    continue
                for name in names if apart else ():
                    resting.take(miners[name], where)
                chosen = {name: miners[name] for name in names}
                found = Refinement(chosen, sweep, known, loading, journal).run(progress)
                for name in names if apart else ():
                    resting.put(miners[name])
                journal.finish(names, found)
            if notes is not None:
                notes += journal.notes
        if finish is not None:
            return Mined(finish(miners))
    return Mined({name: miner.result() for name, miner in miners.items()})


def _into(miners: Mapping[str, Miner]) -> Take:
    def take(layer: str, maps: Tensor, image_ids: Tensor) -> None:
        miners[layer].update(maps, image_ids)

    return take


def _known(skipped: Mapping[int, str], done: int, before: set[int]) -> dict[int, str]:
    # Loading runs ahead: what it skipped beyond `done` will be met again.
    return {image: why for image, why in skipped.items() if image < done or image in before}


def _tell(progress: Progress | None, sweep: Sweep, done: int, total: int) -> None:
    if progress is None:
        return
    progress(MINING, done, total)
    note = getattr(progress, "note", None)
    if note is not None:
        note(MINING, sweep.bottleneck)


def _known_preprocess(source: ImageSource, preprocess: Preprocess | None) -> Preprocess:
    if preprocess is not None:
        return preprocess
    for index in range(len(source)):
        try:
            item = source.item(index)
        except CorruptImage:
            continue
        if isinstance(item, Tensor):
            return Preprocess(1, 1)  # tensors never pass through it
        break
    raise InputError(
        f"no preprocess for the images of {source.name}",
        got="a model without one",
        fix="pass preprocess=Preprocess(…), a model of load_model(), or a Dataset of tensors",
    )


def _first(source: ImageSource, preprocess: Preprocess) -> Tensor:
    """The first readable image, for the layers' shapes."""
    for index in range(len(source)):
        try:
            return source.view(index, preprocess)
        except CorruptImage:
            continue
    raise DataError(f"none of the {len(source)} images of {source.name} can be read")
