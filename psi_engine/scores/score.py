"""The entry: embeddings in, calibrated S, Q, D and PSI per channel out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from psi_engine.config import Backend, ScoreConfig
from psi_engine.distributed import ALONE, World
from psi_engine.nulls.base import Batch, Call
from psi_engine.nulls.neighborhood import SETS_PER_REPLICATE
from psi_engine.nulls.pool import clarity_p
from psi_engine.nulls.registry import NULLS, nulls_of
from psi_engine.ops.backend import memory_budget, resolve_backend
from psi_engine.ops.exact import row_keys, set_keys, unit_rows
from psi_engine.ops.silhouette import silhouette
from psi_engine.scores.inputs import Inputs, check_inputs
from psi_engine.scores.observe import observe
from psi_engine.scores.psi import ScoreTable
from psi_engine.scores.subsamples import subsampled_log_psi
from psi_engine.scores.triage import triage
from psi_engine.statistics import subsampling_interval
from psi_engine.types import NullDraws, Progress, Scores

_MOST_CHANNELS = 4096
_MOST_WORK = 4 * 10**8
# Entries of Gram matrices that are looked at between two calls of progress: a few seconds.
_PER_CHANNEL = ("rotation-samples", "rotation-tangent")
_FEW_REPLICATES = 200


def score(
    embeddings: Any,
    labels: Any = None,
    text_embeddings: Any = None,
    concept_ids: Any = None,
    pool: Any = None,
    unrelated_text_embeddings: Any = None,
    unrelated_concept_ids: Any = None,
    channel_ids: Any = None,
    mask: Any = None,
    config: ScoreConfig | None = None,
    device: str | torch.device = "auto",
    backend: Backend = "auto",
    progress: Progress | None = None,
    world: World = ALONE,
) -> Scores:
    """Score how polysemantic each channel is, against chance.

    Arrays may be torch tensors, NumPy arrays or anything with ``__dlpack__``; they stay where
    they are and are never modified.

    Parameters
    ----------
    embeddings : floating (channels, patches, dim)
        Embeddings of each channel's top patches; any length, they are normalised here.
    labels : integer (channels, patches), optional
        Class of each patch's image, −1 = unknown. Without labels there is no Q.
    text_embeddings : floating (prompts, dim), optional
        Prompts in the same space. Without text there is no D.
    concept_ids : integer (prompts,), optional
        Which concept each prompt names; None = each its own.
    pool : floating (n, dim), optional
        Reference patches for the pool nulls; None = all embeddings of this call, noted.
    unrelated_text_embeddings, unrelated_concept_ids : optional
        Bank of unrelated prompts for ``d_null="unrelated-text"``.
    channel_ids : integer (channels,), optional
        Keys of the randomness; None = a hash of each channel's content.
    mask : bool (channels, patches), optional
        False where a channel has no patch.
    config : ScoreConfig, optional
        None = the calibrated preset.
    device : str or torch.device
        ``auto`` = where the embeddings are if that is a GPU, else a GPU if there is one.
    backend : {"auto", "torch", "numba", "cuda"}
    progress : callable, optional
        ``progress("score", done, channels)``.
    world : World
        Ranks that share the channels; all give the same arguments and get the same scores.

    Returns
    -------
    Scores
        CPU tensors, one row per channel. Defective channels keep their row, with a status and a
        reason; components that are not available are None and left out of PSI.

    Raises
    ------
    InputError
        A type, rank, dtype, shape, size or option is wrong; before any work.
    DeviceError
        The device or backend is not usable here.

    Notes
    -----
    Neither the memory budget nor the order of the channels changes a bit of the result.

    ``config.memory`` bounds what is held beyond inputs and results: a quarter for the channels
    that travel together, an eighth for the pool's rows, the rest for one operation's temporaries;
    64 MiB more cover what is no array. Inputs are read a few MiB at a time, also from a memory
    map. A single channel or null set that is larger than its share is worked on all the same:
    1000 patches of 512 dimensions want about 128 MiB.
    """
    config = ScoreConfig() if config is None else config
    inputs = check_inputs(
        embeddings,
        labels,
        text_embeddings,
        concept_ids,
        pool,
        unrelated_text_embeddings,
        unrelated_concept_ids,
        channel_ids,
        mask,
        config,
        device,
    )
    resolve_backend(backend, inputs.device)  # refused now, not half-way
    memory = memory_budget(inputs.device, config.memory)
    inputs.pool.keep_within(memory // 8)
    call = Call(
        config=config,
        device=inputs.device,
        backend=backend,
        memory=memory // 2,
        pool=inputs.pool,
        texts=inputs.texts,
        unrelated=inputs.unrelated,
        notes=list(inputs.notes),
    )
    labelled = inputs.labels is not None and inputs.labels.labelled > 0
    available = ("s", *(("q",) if labelled else ()), *(("d",) if inputs.texts else ()))
    _note_settings(inputs, available, call)
    nulls = nulls_of(call)
    channels, patches, _ = inputs.embeddings.shape
    table = ScoreTable(channels, patches, available)
    step = channels_at_once(inputs.embeddings, config, memory // 4)
    own = world.share(channels)
    for start in range(own.start, own.stop, step):
        part = slice(start, min(start + step, own.stop))
        for batch in _batches(inputs, part, call, table):
            _score_batch(batch, nulls, call, table)
        if progress is not None:  # the other ranks are about as far
            progress("score", min((part.stop - own.start) * world.size, channels), channels)
    if world.size > 1:  # alone, the rows would only be copied, as large as the results
        _gather(world, table, call)
    counted = [f"{count} {text}" for text, count in call.tallies.items()]
    centre = call.centre if "d" in available else None
    return table.finish(config, nulls, centre, (*call.notes, *counted))


def _gather(world: World, table: ScoreTable, call: Call) -> None:
    """Take the rows, notes and tallies of the other ranks."""
    channels = len(table.status)
    own = (table.rows(world.share(channels)), call.notes, call.tallies)
    for rank, (rows, notes, tallies) in enumerate(world.all_gather(own)):
        if rank == world.rank:
            continue
        table.take(world.share(channels, rank), rows)
        for note in notes:
            call.note(note)
        for text, count in tallies.items():
            call.tally(text, count)


def channels_at_once(embeddings: Tensor, config: ScoreConfig, memory: int) -> int:
    """How many channels travel together: what fits, and what takes no longer than seconds.

    A channel holds its rows as given and thrice as units, its Gram matrix, and its draws with
    the temporaries of their moments.
    """
    _, patches, dim = embeddings.shape
    each = patches * (dim * (12 + embeddings.element_size()) + 8 * patches + 256)
    each += 40 * (config.replicates + config.subsamples)
    solves = config.replicates + 1 if config.s_null in _PER_CHANNEL else 1
    tries = config.restarts * (config.k_max - config.k_min + 1)
    work = patches**2 * (solves * tries + config.subsamples) + 8 * patches * config.replicates
    return max(1, min(_MOST_CHANNELS, memory // each, _MOST_WORK // work))


class _Placed(NamedTuple):
    """A batch and the rows of the table it belongs to, int64 (channels,)."""

    rows: Tensor
    batch: Batch


def _note_settings(inputs: Inputs, available: tuple[str, ...], call: Call) -> None:
    config, patches = call.config, inputs.embeddings.shape[1]
    if "q" not in available:
        call.note("no labels: Q is unavailable and left out of PSI")
    elif inputs.labels is not None and inputs.labels.unlabelled:
        call.note(
            f"channels without a known label: {inputs.labels.unlabelled}; their Q is 0 with p = 1, "
            "so PSI cannot exceed chance"
        )
    if "d" not in available:
        call.note("no text embeddings: D is unavailable and left out of PSI")
    if config.replicates < _FEW_REPLICATES:
        call.note(
            f"with {config.replicates} replicates no p is below 1/{config.replicates + 1} "
            f"(1/{SETS_PER_REPLICATE * config.replicates + 1} against 'neighborhood'): "
            "adjusted p-values and verdicts are coarse"
        )
    if config.k_max > patches - 1:
        call.note(f"k_max = {config.k_max} was clipped to {patches - 1} for {patches} patches")


def _batches(inputs: Inputs, part: slice, call: Call, table: ScoreTable) -> Iterator[_Placed]:
    """Observe the scorable channels of a chunk, grouped by their number of patches."""
    valid = inputs.mask[part].to(call.device)
    unit = unit_rows(inputs.embeddings[part].to(call.device))
    keys = row_keys(unit.rows)
    if inputs.channel_ids is None:
        ids = set_keys(keys, valid)
    else:
        ids = inputs.channel_ids[part].to(call.device)
    scorable, remarks = triage(unit, keys, valid, call.config)
    for row, status, reason in remarks:
        table.status[part.start + row], table.reason[part.start + row] = status, reason
    count = valid.sum(1)
    table.n_patches[part] = count.cpu()
    labels = None
    if inputs.labels is not None and "q" in table.available:
        labels = inputs.labels.values[part].to(call.device, torch.int64)
    for n in torch.unique(count[scorable]).tolist():
        rows = torch.nonzero(scorable & (count == n))[:, 0]
        # valid patches to the front, in their order
        front = torch.argsort((~valid[rows]).to(torch.uint8), dim=1, stable=True)[:, :n]
        own = unit.rows[rows[:, None], front]
        known = None if labels is None else labels[rows].gather(1, front)
        batch = observe(ids[rows], own, known, call)
        points = silhouette(
            batch.grams, batch.assignments, backend=call.backend, memory=call.memory
        )
        where = (rows + part.start).cpu()
        table.n_clusters[where] = batch.n_clusters.cpu()
        table.assignments[where[:, None], front.cpu()] = batch.assignments.cpu()
        table.silhouettes[where[:, None], front.cpu()] = points.cpu()
        yield _Placed(where, batch)


def _score_batch(
    placed: _Placed, chosen: Mapping[str, NullDraws], call: Call, table: ScoreTable
) -> None:
    """Compare a batch with its nulls and fill its rows of the table."""
    config, (rows, batch) = call.config, placed
    observed: dict[str, Tensor] = {x: getattr(batch, x) for x in table.available}
    nulls = {x: NULLS[x][chosen[x].null](batch, call) for x in table.available}
    psi = table.put_components(rows, observed, nulls)
    table.put("clarity", rows, batch.clarity)
    table.put("clarity_p", rows, clarity_p(batch, call))
    if config.subsamples:
        draws = subsampled_log_psi(batch, call, nulls)
        low, high = subsampling_interval(psi, draws)
        table.put("psi_low", rows, low)
        table.put("psi_high", rows, high)
    refused = rows[torch.isnan(psi).cpu()]
    reason = f"s_null {config.s_null!r} does not apply: a patch points away from the mean direction"
    table.fail(refused, reason)
