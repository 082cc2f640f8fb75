"""The mining stage of a run: shared by ranks, continued from what is saved, or cut into shards."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from psi_engine import artifacts
from psi_engine.config import MineConfig, RunConfig
from psi_engine.distributed import ALONE, LOCK, World, launched, only_job
from psi_engine.errors import InputError
from psi_engine.inputs import ImageInputs, Inputs, check
from psi_engine.mining import (
    MICRO_BATCH,
    MINING,
    NETWORK_FORM,
    Miner,
    clear_shelves,
    exchange,
    mine,
    pack_state,
)
from psi_engine.ops.backend import memory_budget
from psi_engine.provenance import made_here
from psi_engine.ranges import Ranges
from psi_engine.shards import (
    FINISHED,
    Part,
    Saver,
    Work,
    join,
    merge,
    read_part,
    refuse_too_many_skipped,
    require_same_work,
    share_of,
    take_stock,
    told_aside,
    write_part,
)
from psi_engine.types import LayerSites, Mined, Progress

PARTIAL = "mining.partial"
"""Folder of the parts that a running mining stage has saved."""

CHECKPOINT_IMAGES = 4096
"""Images of a rank between two saved states of a running mining stage."""


def work_of(config: RunConfig, inputs: ImageInputs) -> Work:
    """What the mining stage of a run has to do, and its key."""
    settings = asdict(replace(config.mine, batch_size=1))
    key = artifacts.fingerprint(
        "mine",
        inputs.identity,
        {layer: inputs.channels[layer] for layer in inputs.layers},
        inputs.model.preprocess,
        {name: x for name, x in settings.items() if name != "memory"},
        # CPU bits do not depend on folding, so their key does not either.
        NETWORK_FORM[inputs.device.type],
    )
    shapes = {layer: inputs.shapes[layer] for layer in inputs.layers}
    made = made_here(inputs.device) | {"micro-batch": str(MICRO_BATCH[inputs.device.type])}
    return Work(key, inputs.identity, len(inputs.source), config.mine, shapes, made)


@dataclass
class MiningPass:
    """One pass of this process over its share of the images.

    scratch : folder for what layers have kept that are not in the pass.
    sharers : processes of the job on this machine.
    """

    work: Work
    config: RunConfig
    inputs: Inputs
    progress: Progress | None
    skipped: dict[int, str]
    scratch: Path
    sharers: int = 1
    notes: list[str] = field(default_factory=list)

    def run(
        self,
        saver: Saver,
        todo: Ranges,
        adopted: Sequence[Part],
        finish: Callable[[Mapping[str, Miner]], Mapping[str, LayerSites]] | None,
    ) -> Mined:
        """Mine ``todo`` on top of the adopted parts, saving now and then."""
        before = Ranges.of(piece for part in adopted for piece in part.covered)
        return mine(
            self.inputs.model,
            self.inputs.source,
            self.inputs.layers,
            self._settings(),
            channels=self.inputs.channels,
            device=self.inputs.device,
            workers=self.config.workers,
            progress=self.progress,
            state=join(adopted) if adopted else None,
            indices=todo.indices(),
            inherited=before.indices(),
            checkpoint=saver,
            checkpoint_every=CHECKPOINT_IMAGES,
            skipped=self.skipped,
            notes=self.notes,
            finish=finish,
            scratch=self.scratch,
        )

    def _settings(self) -> MineConfig:
        config, device = self.config.mine, self.inputs.device
        if self.sharers == 1 or device.type != "cpu" or config.memory is not None:
            return config
        return replace(config, memory=memory_budget(device) // self.sharers)

    def packed(self, miners: Mapping[str, Miner]) -> dict[str, Tensor]:
        """The state after the last image."""
        return pack_state(miners, self.skipped, self.work.images) | {FINISHED: torch.tensor(True)}


def mine_images(
    folder: Path,
    work: Work,
    config: RunConfig,
    inputs: Inputs,
    progress: Progress | None = None,
    world: World = ALONE,
) -> tuple[Mined, dict[int, str], list[str]] | None:
    """Mine every image that no saved part covers yet, all ranks together.

    Parameters
    ----------
    folder : Path
        Of the run, the same for every rank. Its parts of the same work are continued, by any
        number of ranks; what does not belong to it is set aside, which the notes tell.
    work : Work
    config, inputs : RunConfig, Inputs
    progress : callable, optional
    world : World

    Returns
    -------
    tuple of Mined, dict and list, or None
        The sites, image id → reason for unreadable images, and notes of the mining, rank by
        rank; None on ranks other than 0.

    Raises
    ------
    CorruptDataError
        Too many unreadable images.
    """
    partial = folder / PARTIAL
    parts, name = world.from_main(lambda: _stock(partial, work))
    covered = Ranges.of(piece for part in parts for piece in part.covered)
    missing = Ranges.of([(0, work.images)]) - covered
    todo = missing.slice(world.share(len(missing)))
    adopted = parts[world.rank :: world.size]
    saver = Saver(partial / f"{name}-{world.rank:05d}.safetensors", work, adopted, todo)
    told = _of_all(progress, work.images, len(missing), world.size)
    here = MiningPass(work, config, inputs, told, {}, partial, world.local_size)

    def join_ranks(miners: Mapping[str, Miner]) -> Mapping[str, LayerSites]:
        saver(here.packed(miners))  # a rank that dies now costs the others nothing
        return exchange(miners, world) or {}

    mined = here.run(saver, todo, adopted, None if world.size == 1 else join_ranks)
    gathered = world.gather((here.skipped, here.notes))
    if gathered is None:
        return None
    skipped = {image: reason for found, _ in gathered for image, reason in found.items()}
    refuse_too_many_skipped(len(skipped), work.images)
    notes = dict.fromkeys(note for _, notes in gathered for note in notes)  # ranks may say the same
    aside = [
        f"saved mining was set aside as {x['file']}: {x['reason']}" for x in told_aside(partial)
    ]
    return mined, skipped, [*aside, *notes]


def mine_shard(config: RunConfig, share: tuple[int, int], progress: Progress | None = None) -> Path:
    """Mine share i of n of the images into a shard file; continued when it is there in part.

    Parameters
    ----------
    config : RunConfig
        ``out`` is the folder of the shards (None = ``runs/MODEL-shards``).
    share : tuple of int
        i from 1 to n, and n.
    progress : callable, optional

    Returns
    -------
    Path
        Of the shard, for :func:`merge_shards`.

    Raises
    ------
    InputError
        As :func:`psi_engine.inputs.check`; the file holds a shard of other work, or part of one
        that was made in another way; another process is at it; the process is a rank of a
        larger job.
    """
    i, n = share
    if launched():
        raise InputError(
            "shards are mined by one process each",
            got=f"--shard {i}/{n} under a launcher of several ranks",
            fix="start psi-engine without torchrun, or leave --shard out",
        )
    inputs = check(config, progress)
    work = work_of(config, inputs)
    folder = Path(config.out or f"runs/{config.model.replace(':', '-').replace('/', '-')}-shards")
    path = folder / f"shard-{i}-of-{n}.safetensors"
    with only_job(folder / f".{path.name}{LOCK}"):
        scratch = folder / f".{path.stem}"  # its own: others of the array mine beside it
        clear_shelves(scratch)
        try:
            _mine_shard(path, share, work, config, inputs, progress, scratch)
        finally:
            with contextlib.suppress(OSError):  # not made, or files in it are still looked at
                scratch.rmdir()
    return path


def _mine_shard(
    path: Path,
    share: tuple[int, int],
    work: Work,
    config: RunConfig,
    inputs: Inputs,
    progress: Progress | None,
    scratch: Path,
) -> None:
    adopted = []
    if path.exists():
        part = read_part(path)
        known = replace(work, made=part.work.made) if part.complete else work
        require_same_work(known, part, fix="give another --out; nothing was overwritten")
        if part.complete:
            return
        adopted = [part]
    covered = Ranges.of(piece for part in adopted for piece in part.covered)
    todo = share_of(work.images, share) - covered
    saver = Saver(path, work, adopted, todo, share)
    here = MiningPass(work, config, inputs, progress, {}, scratch)

    def write(miners: Mapping[str, Miner]) -> Mapping[str, LayerSites]:
        saver(here.packed(miners))
        return {}

    here.run(saver, todo, adopted, write)


def merge_shards(
    paths: Sequence[Path], out: Path, tell: Callable[[str], None] = lambda text: None
) -> Path:
    """Join shards into a run folder; the same run command then goes on from its mined images.

    Parameters
    ----------
    paths : sequence of Path
        As for :func:`psi_engine.shards.merge`.
    out : Path
        Run folder, new or of the same work.
    tell : callable, optional
        Told what was left out.

    Raises
    ------
    InputError
        As :func:`psi_engine.shards.merge`; the folder holds another run, or a job is writing
        there.
    """
    work, covered, state = merge(paths, tell)
    with only_job(out / LOCK):
        folder = artifacts.RunFolder(out, work.identity)
        if not folder.is_done("mine", work.key):
            folder.begin("mine", work.key)
            take_stock(out / PARTIAL, work)  # sets aside what is of other work
            folder.discard(PARTIAL)
            write_part(out / PARTIAL / "0000-merged.safetensors", work, covered, state)
    return out


def _stock(partial: Path, work: Work) -> tuple[list[Part], str]:
    """What is saved, and a name for this job's parts that none of them has."""
    clear_shelves(partial)  # no rank mines before it has the stock
    parts = take_stock(partial, work)
    numbers = [part.path.name[:4] for part in parts]
    jobs = [int(number) for number in numbers if number.isdecimal()]
    return parts, f"{max(jobs, default=0) + 1:04d}"


def _of_all(progress: Progress | None, images: int, missing: int, ranks: int) -> Progress | None:
    """Report the images of all ranks, taking the others to be about as far as this one."""
    return None if progress is None else _OfAll(progress, images, images - missing, ranks)


@dataclass
class _OfAll:
    progress: Progress
    images: int
    before: int
    ranks: int

    def __call__(self, what: str, done: int, total: int) -> None:
        if what == MINING:
            done, total = min(self.before + done * self.ranks, self.images), self.images
        self.progress(what, done, total)

    def note(self, what: str, text: str) -> None:
        """Hand on what holds the work up."""
        if (note := getattr(self.progress, "note", None)) is not None:
            note(what, text)
