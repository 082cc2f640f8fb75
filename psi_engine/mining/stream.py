"""Mine the sites that excite every channel of the named layers, in one pass over the images.

The forward pass runs in micro-batches of one fixed size (:data:`MICRO_BATCH`), the last one
padded: real networks differ by about 1e-5 between batch shapes, so a batch size chosen for
loading would otherwise change which sites win. Within a fixed shape an image's activations do
not depend on its place in the batch or on its neighbours.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from psi_engine.config import MineConfig
from psi_engine.data import CorruptImage, ImageSource, Preprocess, batches, open_source
from psi_engine.errors import DataError, InputError
from psi_engine.hooks import as_maps, capture, evaluating
from psi_engine.mining.miner import Miner
from psi_engine.mining.state import pack_state, unpack_state
from psi_engine.models import LoadedModel, activation_shapes, resolve_layers
from psi_engine.ops.backend import resolve_device
from psi_engine.types import LayerSites, Mined, Progress

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
    checkpoint: Callable[[dict[str, Tensor]], None] | None = None,
    checkpoint_every: int = 4096,
    state: Mapping[str, Tensor] | None = None,
    indices: Tensor | None = None,
    finish: Callable[[Mapping[str, Miner]], Mapping[str, LayerSites]] | None = None,
) -> Mined:
    """Find the top, bottom, random and pool sites of each channel of some layers, exactly.

    Parameters
    ----------
    model : nn.Module or LoadedModel
        Moved to ``device``; run in eval mode, in float32 without TF32. Its modes are put back.
    images : ImageSource, Dataset, str or Path
        Anything :func:`psi_engine.data.open_source` takes. Tensors of a Dataset go to the model
        as they are, images through ``preprocess``.
    layers : sequence of str
        Module names or globs.
    config : MineConfig, optional
    channels : mapping of layer name to int64 (n,), optional
        Channels to keep; layers not named keep all. A channel's sites do not depend on it.
    preprocess : Preprocess, optional
        None = the one of a LoadedModel.
    device : str or torch.device
    workers : int
        Processes that decode images.
    progress : callable, optional
        ``progress("mining", images done, images in all)``.
    skipped : dict, optional
        Filled with image id → reason for images that could not be read.
    checkpoint : callable, optional
        Given a flat dict of CPU tensors, enough to continue, after every ``checkpoint_every``
        images (rounded up to whole micro-batches).
    state : mapping, optional
        What ``checkpoint`` was last given by a run with the same model, images and settings.
    indices : Tensor, optional
        int64 (n,), ascending ids of the images to look at, a shard of them; None = all. A
        ``state`` holds what was found in those below its ``position``.
    finish : callable, optional
        Given the miners by layer when their images are done, returns the sites of each layer:
        where shards are joined. None = what the miners found.

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
    ``batch_size``, ``workers``, or on being interrupted and continued.
    """
    config = MineConfig() if config is None else config
    where = resolve_device(device)
    module = model.module if isinstance(model, LoadedModel) else model
    if preprocess is None and isinstance(model, LoadedModel):
        preprocess = model.preprocess
    names = resolve_layers(module, [layers] if isinstance(layers, str) else list(layers))
    subsets = dict(channels or {})
    if stray := sorted(subsets.keys() - set(names)):
        raise InputError(
            "channels named for layers that are not mined", got=stray, expected=f"of {names}"
        )
    source = open_source(images)
    skipped = {} if skipped is None else skipped
    preprocess = _known_preprocess(source, preprocess)
    micro = MICRO_BATCH[where.type]
    with evaluating(module.to(where)), exact_fp32():
        shapes = activation_shapes(module, names, _first(source, preprocess, where))
        miners = {
            name: Miner(name, shapes[name], config, subsets.get(name), where) for name in names
        }
        done = 0 if state is None else unpack_state(state, miners, skipped, len(source))
        inherited = set(skipped)
        indices = torch.arange(len(source)) if indices is None else indices
        remaining = indices[indices >= done]
        saved = seen = len(indices) - len(remaining)
        stream = _micro_batches(
            batches(
                source,
                preprocess,
                batch_size=config.batch_size,
                workers=workers,
                indices=remaining,
                skipped=skipped,
            ),
            micro,
        )
        with capture(module, names) as outputs:
            for image_ids, views in stream:
                with torch.inference_mode():
                    outputs.run(prepare(views, preprocess, where, micro))
                for name, miner in miners.items():
                    maps = as_maps(outputs[name], shapes[name])[: len(image_ids)]
                    miner.update(maps, image_ids.to(where, non_blocking=True))
                done = int(image_ids[-1]) + 1
                seen = int(torch.searchsorted(indices, done))
                if progress is not None:
                    progress("mining", seen, len(indices))
                if checkpoint is not None and seen - saved >= checkpoint_every:
                    # Loading runs ahead: what it skipped beyond `done` will be met again.
                    known = {i: why for i, why in skipped.items() if i < done or i in inherited}
                    checkpoint(pack_state(miners, known, done))
                    saved = seen
        if progress is not None and seen < len(indices):  # the last images could not be read
            progress("mining", len(indices), len(indices))
        if finish is not None:
            return Mined(finish(miners))
    return Mined({name: miner.result() for name, miner in miners.items()})


def prepare(views: Tensor, preprocess: Preprocess, device: torch.device, size: int) -> Tensor:
    """Normalised input of exactly ``size`` rows; the last ones repeat row 0 where rows lack."""
    views = views.to(device, non_blocking=True)
    x = views.to(torch.float32) if views.is_floating_point() else preprocess.normalise(views)
    if len(x) < size:
        x = torch.cat([x, x[:1].expand(size - len(x), *x.shape[1:])])
    # Convolutions of deep networks run 1.3 to 2 times as fast in this layout on a CPU.
    return x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x.contiguous()


def _micro_batches(loaded: Iterator[Any], size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Cut a stream of batches into batches of ``size`` images, the last one smaller."""
    ids: list[Tensor] = []
    views: list[Tensor] = []
    held = 0
    for batch in loaded:
        ids.append(batch.image_ids)
        views.append(batch.views)
        held += len(batch.image_ids)
        if held < size:
            continue
        whole = held - held % size
        all_ids, all_views = torch.cat(ids), torch.cat(views)
        yield from zip(all_ids[:whole].split(size), all_views[:whole].split(size), strict=True)
        ids, views, held = [all_ids[whole:]], [all_views[whole:]], held - whole
    if held:
        yield torch.cat(ids), torch.cat(views)


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


def _first(source: ImageSource, preprocess: Preprocess, device: torch.device) -> Tensor:
    """The first readable image as a batch of one, for the layers' shapes."""
    for index in range(len(source)):
        try:
            view = source.view(index, preprocess)
        except CorruptImage:
            continue
        return prepare(view[None], preprocess, device, 1)
    raise DataError(f"none of the {len(source)} images of {source.name} can be read")


@contextmanager
def exact_fp32() -> Iterator[None]:
    """IEEE float32 and deterministic convolutions for the duration.

    TF32 keeps 48 to 50 of 50 true sites, bfloat16 34 to 47: not exact mining.
    """
    ops: Any = torch.backends
    places = (ops.cuda.matmul, ops.cudnn.conv, ops.cudnn.rnn, ops.mkldnn.conv, ops.mkldnn.matmul)
    before = [place.fp32_precision for place in places]
    cudnn = ops.cudnn.deterministic, ops.cudnn.benchmark
    try:
        for place in places:
            place.fp32_precision = "ieee"
        ops.cudnn.deterministic, ops.cudnn.benchmark = True, False
        yield
    finally:
        for place, value in zip(places, before, strict=True):
            place.fp32_precision = value
        ops.cudnn.deterministic, ops.cudnn.benchmark = cudnn
