"""``psi-engine swap RUN``: plan, run block by block, test, write.

A block is some channels of one layer. Finished blocks are kept under a key of all that moves an
activation, so that a killed command goes on where it stopped; since every draw is keyed and every
forward pass has one fixed shape, the bits are those of an uninterrupted one. Swaps that are done
are tested anew, not made anew, where only the resamples of the intervals change.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from torch import Tensor

from psi_engine import artifacts
from psi_engine.causal.config import CONDITIONS, HostKind, SwapConfig
from psi_engine.causal.measure import activations
from psi_engine.causal.paste import blend_weights
from psi_engine.causal.plan import Hosts, LayerPlan, plan_hosts, square_side
from psi_engine.causal.select import select_channels, sort_out
from psi_engine.causal.summary import NOT_COMPARED, compare_conditions
from psi_engine.causal.swap_table import edits_of, swap_rows
from psi_engine.data import batches
from psi_engine.distributed import LOCK, only_job
from psi_engine.embedding import refuse_unreadable
from psi_engine.errors import InputError, RunFolderError
from psi_engine.inputs import ImageInputs, reopen_images
from psi_engine.mining import MICRO_BATCH
from psi_engine.ops.backend import resolve_device
from psi_engine.stored import StoredLayer, StoredRun, load_stored
from psi_engine.types import Progress

CAUSAL = "causal.parquet"
CAUSAL_SUMMARY = "causal_summary.parquet"
PARTIAL = "causal.partial"
BLOCK = 8
"""Channels whose images are held, swapped and written down together."""


def swap(
    path: str | Path, config: SwapConfig | None = None, *, progress: Progress | None = None
) -> artifacts.Run:
    """Swap patches into the images of a finished run's channels and test what it does.

    Parameters
    ----------
    path : str or Path
        A finished run folder.
    config : SwapConfig, optional
    progress : callable, optional
        ``progress("swapping", images done, images in all)``.

    Returns
    -------
    Run
        With ``causal.parquet`` (one row per swap) and ``causal_summary.parquet`` (the tests);
        what was left out, with reasons, is in the manifest's stage ``swap``.

    Raises
    ------
    InputError
        Before any work: not a finished run, channels it does not hold, a square too large, no
        channel that can be swapped, other weights or images than the run was made with.
    RunFolderError
        Another job is writing there.
    CorruptDataError
        An image that can no longer be read.
    """
    config = SwapConfig() if config is None else config
    with only_job(artifacts.open_run(path).path / LOCK):
        return _swap(load_stored(path), config, progress)


def _swap(stored: StoredRun, config: SwapConfig, progress: Progress | None) -> artifacts.Run:
    if "sites" in stored.run.manifest["identity"]:
        raise InputError(
            "the sites of the run were found by another tool",
            got=stored.run.manifest["identity"]["sites"],
            expected="sites with activation ranges, as psi-engine run mines them",
            fix="run psi-engine run with another --out",
        )
    plan = plan_swaps(stored, config)
    key, device = swap_key(stored, config), _device(stored)
    folder = artifacts.RunFolder(stored.run.path, stored.run.manifest["identity"])
    if folder.is_done("swap", key):
        return artifacts.open_run(folder.path)
    held = _holds(folder, config, device)
    started = time.perf_counter()
    facts = {"config": asdict(config), "device": device}
    if held:
        folder.begin("swap", key, **facts)
        table = pq.read_table(folder.path / CAUSAL)
    else:
        inputs = reopen_images(stored.run, progress)
        folder.begin("swap", key)
        kept = folder.path / PARTIAL / _passes_key(stored, config)
        table = _swap_blocks(kept, inputs, plan, config, progress)
        artifacts.write_table(folder.path / CAUSAL, table)
    summary = compare_conditions(table, config.bootstrap, config.seed)
    artifacts.write_table(folder.path / CAUSAL_SUMMARY, summary)
    drift = _drift(table, plan)
    folder.finish(
        "swap",
        [CAUSAL, CAUSAL_SUMMARY],
        time.perf_counter() - started,
        **facts,
        side={layer: plan.layers[layer].side for layer in plan.rows},
        channels=sum(map(len, plan.rows.values())),
        swaps=len(table),
        nonfinite=table["delta"].null_count,
        drift=drift,
        skipped=plan.skipped,
        notes=[*plan.notes, *_drift_note(drift, stored.config.mine.precision)],
    )
    folder.discard(PARTIAL)
    return artifacts.open_run(folder.path)


@dataclass(frozen=True)
class Plan:
    """What will be swapped: layers, the rows of the usable channels, kinds of hosts, the rest."""

    layers: dict[str, LayerPlan]
    rows: dict[str, list[int]]
    kinds: tuple[HostKind, ...]
    skipped: list[dict[str, Any]]
    notes: list[str]

    def blocks(self, per_channel: int) -> list[list[Hosts]]:
        """Draw the swaps of every channel, :data:`BLOCK` channels of a layer together."""
        return [
            [
                plan_hosts(self.layers[layer], row, kind, per_channel)
                for row in rows[first : first + BLOCK]
                for kind in self.kinds
            ]
            for layer, rows in self.rows.items()
            for first in range(0, len(rows), BLOCK)
        ]


def plan_swaps(stored: StoredRun, config: SwapConfig) -> Plan:
    """Choose channels and part the usable ones from the others; needs neither model nor images.

    Raises
    ------
    InputError
        As :func:`swap`, but for the inputs.
    """
    kinds, notes = _host_kinds(stored, config)
    layers = {name: _layer_plan(stored, layer, config) for name, layer in stored.layers.items()}
    sites = {name: layer.sites for name, layer in stored.layers.items()}
    chosen = select_channels(stored.run, sites, config.channels, config.top)
    rows, skipped = sort_out(stored.run, layers, chosen)
    return Plan(layers, rows, kinds, skipped, notes)


def read_swaps(run: artifacts.Run) -> tuple[pa.Table, pa.Table]:
    """The swaps of a run and their tests.

    Raises
    ------
    RunFolderError
        They were not made, or belong to earlier scores.
    """
    entry = run.manifest["stages"].get("swap", {})
    paths = [run.path / CAUSAL, run.path / CAUSAL_SUMMARY]
    if entry.get("status") != "done" or not all(path.exists() for path in paths):
        raise RunFolderError(
            f"{run.path} holds no swaps of its scores",
            got=f"stage swap {entry.get('status', 'not begun')}",
            fix=f"psi-engine swap {run.path}",
        )
    return pq.read_table(paths[0]), pq.read_table(paths[1])


def summarise(run: artifacts.Run) -> dict[str, Any]:
    """What swapping showed, JSON-able: pooled tests, and what was left out and why."""
    _, tests = read_swaps(run)
    stage = run.manifest["stages"]["swap"]
    pooled = tests.filter(pc.not_equal(tests["level"], "channel"))
    return {
        "run": str(run.path),
        "swaps_file": str(run.path / CAUSAL),
        "tests_file": str(run.path / CAUSAL_SUMMARY),
        "tests": pooled.drop_columns(
            ["channel", "mean_aligned_raw", "mean_control_raw"]
        ).to_pylist(),
        **{name: stage[name] for name in ("channels", "swaps", "side", "nonfinite", "seconds")},
        "skipped": stage["skipped"],
        "notes": stage["notes"],
    }


def swap_key(stored: StoredRun, config: SwapConfig) -> str:
    """What the swaps of a run and their tests depend on, as 16 hex digits."""
    return artifacts.fingerprint("swap tests", 2, _passes_key(stored, config), config.bootstrap)


def _passes_key(stored: StoredRun, config: SwapConfig) -> str:
    """What the activations depend on."""
    scored = stored.run.manifest["stages"]["score"]["key"]
    return artifacts.fingerprint("swap", scored, _passes(asdict(config)), _device(stored))


def _passes(config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that move an activation: not those of the tests."""
    return {name: x for name, x in config.items() if name != "bootstrap"}


def _device(stored: StoredRun) -> str:
    return resolve_device(stored.config.device).type


def _holds(folder: artifacts.RunFolder, config: SwapConfig, device: str) -> bool:
    """Whether the table that is there is of these swaps; of other scores it has no entry."""
    entry = folder.manifest["stages"].get("swap", {})
    if "config" not in entry or not (folder.path / CAUSAL).is_file():
        return False
    made = artifacts.fingerprint(_passes(entry["config"]), entry.get("device", device))
    return made == artifacts.fingerprint(_passes(asdict(config)), device)


def _drift(table: pa.Table, plan: Plan) -> float | None:
    """Largest |before − mined| in units of the channel's range; None where none is finite."""
    largest: list[float] = []
    for name in plan.rows:
        sites, ours = plan.layers[name].sites, table.filter(pc.equal(table["layer"], name))
        place = {channel: row for row, channel in enumerate(sites.channels.tolist())}
        span = (sites.stats.maximum.double() - sites.stats.minimum.double()).numpy()
        for kind in plan.kinds:
            of_kind = ours.filter(pc.equal(ours["hosts"], kind))
            rows = np.array([place[x] for x in of_kind["channel"].to_pylist()], np.int64)
            mined = getattr(sites, kind).values.double().numpy()
            before = of_kind["before"].to_numpy().astype(np.float64)  # NaN where null
            change = np.abs(before - mined[rows, of_kind["host_rank"].to_numpy()]) / span[rows]
            largest += change[np.isfinite(change)].tolist()
    return max(largest, default=None)


def _drift_note(drift: float | None, precision: str) -> list[str]:
    if not drift:
        return []
    return [
        f"untouched, activations differ from those mined in {precision} by up to {drift:.2g} of "
        "their channel's range; what is compared are passes in fp32"
    ]


def _layer_plan(stored: StoredRun, layer: StoredLayer, config: SwapConfig) -> LayerPlan:
    side = square_side(layer.field, stored.image_size, config.swap_patch)
    return LayerPlan(
        sites=layer.sites,
        assignments=stored.assignments(layer.name),
        mask=layer.mask,
        field=layer.field,
        side=side,
        image_size=stored.image_size,
        seed=config.seed,
    )


def _host_kinds(stored: StoredRun, config: SwapConfig) -> tuple[tuple[HostKind, ...], list[str]]:
    if "random" not in config.host_kinds:
        return config.host_kinds, []
    if stored.config.mine.reservoir:
        return config.host_kinds, [NOT_COMPARED]
    if config.hosts == "random":
        raise InputError(
            "no random hosts", got="a run with reservoir = 0", fix="give --hosts top, or run again"
        )
    return ("top",), ["no random hosts: the run mined no random sites (reservoir = 0)"]


def _swap_blocks(
    kept: Path,
    inputs: ImageInputs,
    plan: Plan,
    config: SwapConfig,
    progress: Progress | None,
) -> pa.Table:
    """The rows of all blocks; those in ``kept`` are read, the others made and kept."""
    blocks = plan.blocks(config.per_channel)
    each = 1 + len(config.blends) * len(CONDITIONS)
    total = sum(len(hosts) * each for block in blocks for hosts in block)
    done, tables = 0, []
    for number, block in enumerate(blocks):
        path = kept / f"{number:05d}.parquet"
        if not path.exists():
            told = partial(_tell, progress, done, total)
            layer = plan.layers[block[0].layer]
            artifacts.write_table(path, _swap_block(block, inputs, layer, config, told))
        tables.append(pq.read_table(path))
        done += sum(len(hosts) * each for hosts in block)
        _tell(progress, done, total, 0)
    return pa.concat_tables(tables)


def _tell(progress: Progress | None, before: int, total: int, done: int) -> None:
    if progress is not None:
        progress("swapping", before + done, total)


def _swap_block(
    block: Sequence[Hosts],
    inputs: ImageInputs,
    plan: LayerPlan,
    config: SwapConfig,
    progress: Callable[[int], None],
) -> pa.Table:
    edits, images = edits_of(block, len(config.blends))
    weights = [blend_weights(plan.side, blend) for blend in config.blends]
    found = activations(
        inputs.model.module,
        block[0].layer,
        plan.sites.shape,
        inputs.model.preprocess,
        _views(inputs, images),
        edits,
        torch.stack([torch.zeros_like(weights[0]), *weights]),
        device=inputs.device,
        progress=progress,
    )
    span = plan.sites.stats.maximum.double() - plan.sites.stats.minimum.double()
    each = 1 + len(config.blends) * len(CONDITIONS)
    parts = found.split([len(hosts) * each for hosts in block])
    return pa.concat_tables(
        swap_rows(hosts, part, float(span[hosts.row]), config.blends)
        for hosts, part in zip(block, parts, strict=True)
    )


def _views(inputs: ImageInputs, images: Tensor) -> Tensor:
    """What the network sees of some images, uint8 (images, 3, S, S)."""
    skipped: dict[int, str] = {}
    views = []
    for batch in batches(
        inputs.source,
        inputs.model.preprocess,
        batch_size=MICRO_BATCH[inputs.device.type],
        indices=images,
        skipped=skipped,
    ):
        refuse_unreadable(inputs.source, skipped)
        views.append(batch.views)
    refuse_unreadable(inputs.source, skipped)
    return torch.cat(views)
