"""Files of partly mined images: what ranks, job arrays and killed runs leave, and their union.

A *part* holds everything mined from some images: the miners' state, which images it covers, and
whose work it is. Parts of the same work that share no image add up, in any order, to what one
process would have found. A running stage saves parts; ``--shard i/n`` writes one for
``psi-engine merge``; whoever continues adopts the parts it finds and mines what none covers.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from psi_engine import artifacts
from psi_engine.config import MineConfig
from psi_engine.data.loading import MAX_SKIPPED
from psi_engine.errors import CorruptDataError, InputError
from psi_engine.mining import Miner, pack_state, unpack_state
from psi_engine.provenance import differences
from psi_engine.ranges import Ranges
from psi_engine.types import ActivationShape

FORMAT = "psi-engine mined images 2"
"""Says what the file is; the number rises with the layout."""
FINISHED = "finished"
"""Entry of a state after which nothing is left to do to what was mined."""
_WHY = "why.jsonl"  # among parts that were set aside


@dataclass(frozen=True)
class Work:
    """What was to be mined; parts of equal work can be joined.

    key : of the mining stage. identity : model, weights and data, as in the manifest.
    images : in the whole source. mine : settings. shapes : layout of each layer.
    made : what else the bits of activations depend on: software, device, threads. A finished
    stage holds whatever made it; images mined in different ways are not added up.
    """

    key: str
    identity: Mapping[str, str]
    images: int
    mine: MineConfig
    shapes: Mapping[str, ActivationShape]
    made: Mapping[str, str]


@dataclass(frozen=True)
class Part:
    """A part's facts, without its tensors.

    covered : images that were looked at, unreadable ones included. share : (i, n) of a
    ``--shard i/n``, None for what a running stage saved. unfinished : whether candidates of
    ``exact-fp16`` are still to be refined.
    """

    path: Path
    work: Work
    covered: Ranges
    share: tuple[int, int] | None
    unfinished: bool = False

    @property
    def complete(self) -> bool:
        """Whether every image of the share is covered, and what was found is refined."""
        whole = self.share is not None and self.covered == share_of(self.work.images, self.share)
        return whole and not self.unfinished


def share_of(images: int, share: tuple[int, int]) -> Ranges:
    """The images of share i of n, i from 1 to n."""
    i, n = share
    return Ranges.of([(images * (i - 1) // n, images * i // n)])


def parse_share(text: str) -> tuple[int, int]:
    """Read ``i/n``.

    Raises
    ------
    InputError
        It is something else, or i is not from 1 to n.
    """
    i, slash, n = text.partition("/")
    if not (slash and i.isdecimal() and n.isdecimal() and 1 <= int(i) <= int(n)):
        raise InputError("a shard is not named", got=repr(text), expected="i/n, such as 1/8 to 8/8")
    return int(i), int(n)


def write_part(
    path: Path,
    work: Work,
    covered: Ranges,
    state: Mapping[str, Tensor],
    share: tuple[int, int] | None = None,
    unfinished: bool = False,
) -> None:
    """Write a part atomically; ``state`` as :func:`psi_engine.mining.pack_state` gives it."""
    facts = {
        "work": asdict(work), "covered": covered.parts, "share": share, "unfinished": unfinished,
    }  # fmt: skip
    artifacts.write_tensors(path, state, {"format": FORMAT, "facts": json.dumps(facts)})


def read_part(path: Path) -> Part:
    """Read a part's facts.

    Raises
    ------
    InputError
        The file is not there, broken, or something else.
    OSError
        The system failed to read it, which says nothing about the file.
    """
    try:
        path.open("rb").close()  # safe_open takes whatever the system says for a missing file
        with safe_open(path, framework="pt") as file:
            notes = file.metadata() or {}
    except (FileNotFoundError, IsADirectoryError, PermissionError, SafetensorError) as error:
        raise InputError(
            "a shard cannot be read", got=f"{path}: {error}", fix="mine that shard again"
        ) from None
    if notes.get("format") != FORMAT:
        raise InputError(
            "the file is no shard of this version",
            got=f"{path}: {notes.get('format', 'another kind of file')}",
            expected=FORMAT,
        )
    facts = json.loads(notes["facts"])
    work = facts.pop("work")
    shapes = {
        name: ActivationShape(x["kind"], x["channels"], tuple(x["grid"]))
        for name, x in work.pop("shapes").items()
    }
    share = facts["share"]
    return Part(
        path,
        Work(mine=MineConfig(**work.pop("mine")), shapes=shapes, **work),
        Ranges.of(facts["covered"]),
        None if share is None else (share[0], share[1]),
        facts.get("unfinished", False),
    )


def join(parts: Sequence[Part]) -> dict[str, Tensor]:
    """Add up parts that share no image, two in memory at a time; their state, on the CPU.

    The state's position is 0: ``mine`` takes it with the ``indices`` that are still to do.
    """
    if len(parts) == 1:  # stays in its file
        return artifacts.read_tensors(parts[0].path)[0] | {"position": torch.tensor(0)}
    total: dict[str, Miner] = {}
    skipped: dict[int, str] = {}
    for part in parts:
        state, _ = artifacts.read_tensors(part.path)
        miners = {
            name: Miner(name, shape, part.work.mine, state[f"{name}/channels"])
            for name, shape in part.work.shapes.items()
        }
        unpack_state(state, miners, skipped, part.work.images)
        for name, miner in miners.items():
            if name in total:
                total[name].merge(miner)
            else:
                total[name] = miner
    return pack_state(total, skipped, 0)


def without_repeats(parts: Sequence[Part]) -> list[Part]:
    """Leave out parts whose images another part covers too; the order becomes the images'."""
    kept: list[Part] = []
    for part in sorted(parts, key=lambda p: (-len(p.covered), str(p.path))):
        if len(part.covered) and not any(part.covered - k.covered == Ranges() for k in kept):
            kept.append(part)
    return sorted(kept, key=lambda part: part.covered.parts)


def take_stock(folder: Path, work: Work) -> list[Part]:
    """The parts in a folder that add up to some of this work; no image is in two of them.

    What another part contains is removed. Parts of other work, made in another way (unless one
    holds every image), that overlap in part, and what is no part: all go into a folder beside,
    where :func:`told_aside` finds why.
    """
    found = []
    for path in sorted(folder.glob("*.safetensors")):
        try:
            part = read_part(path)
        except InputError as error:
            _set_aside(path, str(error))
            continue
        if part.work.key != work.key:
            _set_aside(path, "mined with other settings")
        elif part.work.made != work.made and (part.unfinished or len(part.covered) < work.images):
            _set_aside(path, f"mined by {differences(part.work.made, work.made)}")
        else:
            found.append(part)
    kept: list[Part] = []
    for part in sorted(found, key=lambda p: -len(p.covered)):
        other = next((k for k in kept if len(k.covered & part.covered)), None)
        if other is None and len(part.covered):
            kept.append(part)
        elif other is None or not len(part.covered - other.covered):
            part.path.unlink()
        else:
            _set_aside(part.path, f"shares images with {other.path.name}")
    return sorted(kept, key=lambda part: part.covered.parts)


def _set_aside(path: Path, why: str) -> None:
    aside = _beside(path.parent)
    aside.mkdir(exist_ok=True)
    place, number = aside / path.name, 1
    while place.exists():
        place, number = aside / f"{path.stem}-{number}{path.suffix}", number + 1
    with (aside / _WHY).open("a", encoding="utf-8") as file:
        file.write(json.dumps({"file": f"{aside.name}/{place.name}", "reason": why}) + "\n")
    os.replace(path, place)


def _beside(folder: Path) -> Path:
    return folder.with_suffix(".set-aside")


def told_aside(folder: Path) -> list[dict[str, str]]:
    """What :func:`take_stock` has ever set aside of a folder: ``file`` and ``reason`` of each."""
    path = _beside(folder) / _WHY
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return [json.loads(line) for line in lines]


class Saver:
    """Saves one rank's progress in a running stage, and lets go of the parts it contains.

    Parameters
    ----------
    path : Path
        Of the part to write, over and over; no other process writes it.
    work : Work
    adopted : sequence of Part
        Whose images the rank's miners started with.
    todo : Ranges
        The images it mines, in ascending order.
    share : (int, int), optional
    """

    def __init__(
        self,
        path: Path,
        work: Work,
        adopted: Sequence[Part],
        todo: Ranges,
        share: tuple[int, int] | None = None,
    ) -> None:
        self.path, self._work, self._share = path, work, share
        self._adopted, self._todo = list(adopted), todo
        self._start = Ranges.of(piece for part in adopted for piece in part.covered)

    def __call__(self, state: Mapping[str, Tensor]) -> None:
        """Save a state of :func:`psi_engine.mining.mine`; its position says what it covers."""
        covered = self._start | self._todo.below(int(state["position"]))
        unfinished = self._work.mine.precision == "exact-fp16" and FINISHED not in state
        write_part(self.path, self._work, covered, state, self._share, unfinished)
        # Only now: until the new part stands, the old ones are all there is.
        for part in self._adopted:
            if part.path != self.path:
                part.path.unlink(missing_ok=True)
        self._adopted = []


def merge(
    paths: Sequence[Path], tell: Callable[[str], None] = lambda text: None
) -> tuple[Work, Ranges, dict[str, Tensor]]:
    """Check shards of a job array and add them up.

    Parameters
    ----------
    paths : sequence of Path
        Files in any order, and folders of them. The same images twice are taken once.
    tell : callable, optional
        Told what was left out.

    Returns
    -------
    tuple of Work, Ranges and dict
        Whose work it is, which images it covers (all), the miners' state.

    Raises
    ------
    InputError
        Before anything is added up: a file that is no shard, shards of different work, shards
        that overlap in part, images that no shard covers (the missing shards are named).
    CorruptDataError
        Too many unreadable images.
    """
    parts = [read_part(path) for path in _files(paths)]
    first = parts[0]
    for part in parts[1:]:
        require_same_work(first.work, part, fix="merge shards of one run only")
    finished = [part for part in parts if not part.unfinished]
    kept = without_repeats(finished)
    for part in finished:
        if part not in kept:
            tell(f"{part.path} holds nothing the others do not; left out")
    covered = Ranges()
    for place, part in enumerate(kept):
        if len(part.covered & covered):
            _refuse_overlap(part, kept[:place])
        covered |= part.covered
    _require_all(first.work.images, covered, parts)
    state = join(kept)
    unreadable = len(json.loads(bytes(state["skipped"].tolist()).decode()))
    refuse_too_many_skipped(unreadable, first.work.images)
    return first.work, covered, state


def refuse_too_many_skipped(count: int, images: int) -> None:
    """Hold the unreadable images of joined parts to the limit of a single process.

    Raises
    ------
    CorruptDataError
        They are more than :data:`psi_engine.data.loading.MAX_SKIPPED` of the images.
    """
    if count > MAX_SKIPPED * images:
        raise CorruptDataError(
            "too many images cannot be read",
            got=f"{count} of {images}",
            expected=f"at most {MAX_SKIPPED:.0%}",
            fix="mend or remove the broken files",
        )


def _files(paths: Sequence[Path]) -> list[Path]:
    found: list[Path] = []
    for path in paths:
        inside = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
        if not inside:
            raise InputError("no shards in the folder", got=str(path))
        found += [x for x in inside if x not in found]
    if not found:
        raise InputError("no shards named", fix="give the files that --shard wrote")
    return found


def require_same_work(work: Work, part: Part, fix: str) -> None:
    """Refuse a part that cannot be added to some work.

    Raises
    ------
    InputError
        Saying in what the part differs: model, weights, data, settings, layers, software …
    """
    mine, theirs = _flat(work), _flat(part.work)
    differing = [name for name in mine | theirs if mine.get(name) != theirs.get(name)]
    if differing:
        named = [name for name in differing if name != "key"] or ["channels or preprocess"]
        raise InputError(
            f"{part.path} is a shard of other work",
            got="; ".join(f"{name} {theirs.get(name, '')}".strip() for name in named),
            expected="; ".join(f"{name} {mine.get(name, '')}".strip() for name in named),
            fix=fix,
        )


def _flat(work: Work) -> dict[str, Any]:
    settings = asdict(replace(work.mine, batch_size=1, memory=None))
    return {
        **work.identity,
        "images": work.images,
        **settings,
        "layers": dict(work.shapes),
        **work.made,
        "key": work.key,
    }


def _refuse_overlap(part: Part, others: Sequence[Part]) -> None:
    other = next(other for other in others if len(other.covered & part.covered))
    raise InputError(
        "shards overlap in part, so statistics would count images twice",
        got=f"{other.path} and {part.path}, both with images {other.covered & part.covered}",
        expected="shards of one cut, --shard 1/n to n/n",
        fix="leave one of them out",
    )


def _require_all(images: int, covered: Ranges, parts: Sequence[Part]) -> None:
    missing = Ranges.of([(0, images)]) - covered
    if not len(missing):
        return
    cuts = {part.share[1] for part in parts if part.share is not None}
    named = ""
    if len(cuts) == 1:
        n = cuts.pop()
        lacking = [f"{i}/{n}" for i in range(1, n + 1) if len(share_of(images, (i, n)) & missing)]
        named = f"shards {', '.join(lacking)} missing or unfinished: "
    raise InputError(
        "not every image was mined",
        got=f"{named}images {missing} of {images}",
        fix="run these shards (again: they continue where they stopped), then merge",
    )
