"""The ranks of one job: which one this is, what its share is, how ranks hand things over.

``torchrun`` starts the ranks and says so in the environment; torch.distributed carries what they
exchange, by gloo between CPUs and by NCCL between GPUs. Alone, every operation hands back what it
was given, so a stage is written once. Nothing happens on import.
"""

from __future__ import annotations

import errno
import os
import socket
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import IO, Any, NamedTuple, TypeVar
from uuid import uuid4

import torch
import torch.distributed as dist
from torch import Tensor

from psi_engine.errors import InputError, PsiEngineError, RankError, RunFolderError

T = TypeVar("T")

_LAUNCHED = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
# One rank may mine for days while another waits for it; who dies ends the job at once.
_PATIENCE = timedelta(days=30)


class _Answer(NamedTuple):
    value: Any
    error: str | None


@dataclass(frozen=True)
class World:
    """The ranks that share a job.

    rank, size : this rank, of how many. local_rank, local_size : the same on this machine.
    device : where tensors must be to be exchanged.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def main(self) -> bool:
        """Whether this rank writes the run folder and speaks to the user."""
        return self.rank == 0

    def share(self, items: int, rank: int | None = None) -> slice:
        """The part of ``range(items)`` a rank owns; parts differ by one item at most."""
        r = self.rank if rank is None else rank
        return slice(-(-items * r // self.size), -(-items * (r + 1) // self.size))

    def from_main(self, work: Callable[[], T]) -> T:
        """Do something on rank 0 alone and give every rank what came out.

        Raises
        ------
        PsiEngineError
            On rank 0 whatever ``work`` raised; on the others a :class:`RankError`.
        """
        if self.size == 1:
            return work()
        answer = [_Answer(None, None)]
        if self.main:
            try:
                answer = [_Answer(work(), None)]
            except Exception as error:
                self._collect(dist.broadcast_object_list, [_Answer(None, str(error))], src=0)
                raise
        self._collect(dist.broadcast_object_list, answer, src=0)
        if answer[0].error is not None:
            raise RankError("rank 0 stopped", got=answer[0].error)
        value: T = answer[0].value
        return value

    def gather(self, value: T) -> list[T] | None:
        """Every rank's value, in the order of the ranks, on rank 0; None on the others."""
        if self.size == 1:
            return [value]
        found: list[Any] | None = [None] * self.size if self.main else None
        self._collect(dist.gather_object, value, found, dst=0)
        return found

    def all_gather(self, value: T) -> list[T]:
        """Every rank's value, in the order of the ranks."""
        found: list[Any] = [None] * self.size
        if self.size == 1:
            return [value]
        self._collect(dist.all_gather_object, found, value)
        return found

    def exchange(self, x: Tensor, counts: list[int]) -> list[Tensor]:
        """Send each rank its rows and receive one's own from each (all-to-all).

        Parameters
        ----------
        x : Tensor (sum(counts), …)
            Rows for rank 0 first, then for rank 1 …
        counts : list of int
            How many rows each rank gets; the same list on every rank.

        Returns
        -------
        list of Tensor (counts[rank], …)
            What each rank sent here, on ``device``, in the order of the ranks.
        """
        if self.size == 1:
            return [x]
        own = counts[self.rank]
        sent = x.to(self.device).contiguous()
        received = sent.new_empty(own * self.size, *x.shape[1:])
        self._collect(dist.all_to_all_single, received, sent, [own] * self.size, counts)
        return list(received.split(own)) if own else [received] * self.size

    def wait(self) -> None:
        """Return when every rank is here."""
        self.all_gather(None)

    def in_turn(self, work: Callable[[], T]) -> T:
        """Do something on every rank: rank 0 first, then one rank of every machine, then the rest.

        What the first one downloads, the others find.
        """
        turn = 0 if self.main else 1 if self.local_rank == 0 else 2
        for now in range(3):
            if now == turn:
                value = work()
            self.wait()
        return value

    def require_shared(self, folder: Path) -> None:
        """Refuse a folder that is not the same one for every rank.

        Raises
        ------
        InputError
            A rank does not see what rank 0 put there (:class:`RankError` but on rank 0).
        """
        if self.size == 1:
            return
        folder.mkdir(parents=True, exist_ok=True)
        name = self.from_main(lambda: f".shared-{uuid4().hex}.tmp")
        if self.main:
            (folder / name).touch()
        self.wait()
        seen = self.all_gather((folder / name).exists())
        if self.main:
            (folder / name).unlink()
        if not all(seen):
            raise self._met_by_all(
                "the ranks do not share the folder",
                got=f"{folder}, which rank {seen.index(False)} sees as another",
                fix="give a folder on a file system that every machine of the job mounts",
            )

    def require_same(self, what: str, value: object) -> None:
        """Refuse a job whose ranks would work on different things.

        Raises
        ------
        InputError
            Naming the first that differs from rank 0 (:class:`RankError` but on rank 0).
        """
        found = self.all_gather(value)
        for rank, other in enumerate(found):
            if other != found[0]:
                raise self._met_by_all(
                    f"the ranks see different {what}",
                    got=f"{other} on rank {rank}",
                    expected=f"{found[0]}, as on rank 0",
                    fix="give every rank the same options, files and software",
                )

    def _met_by_all(self, what: str, **words: Any) -> PsiEngineError:
        return (InputError if self.main else RankError)(what, **words)

    def _collect(self, operation: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
        try:
            operation(*args, **kwargs)
        except (RuntimeError, ValueError) as error:
            if isinstance(error, PsiEngineError):
                raise
            raise RankError(
                "another rank ended",
                got=str(error).splitlines()[0],
                fix="see that rank's message; the same command continues from what is saved",
            ) from error


ALONE = World()
"""The world of one process."""

LOCK = ".lock"
"""File that a job holds locked in the run folder while it writes there."""


@contextmanager
def only_job(lock: Path, world: World = ALONE) -> Iterator[None]:
    """Keep other jobs from writing where this one does.

    Parameters
    ----------
    lock : Path
        Locked by rank 0 for the duration and removed at the end. The system frees the lock of a
        process that ends in any way: a file that a killed job left behind stops nobody. Who holds
        it may take it again, for a step that is a command of its own.
    world : World

    Raises
    ------
    RunFolderError
        Another process or thread holds it (which, and on which machine, is said), or it cannot be
        made.
    """
    held: list[IO[str]] = []
    place, claim = lock.resolve(), (threading.get_ident(), object())

    def hold() -> None:
        owner = _held_by.setdefault(place, claim)
        if owner is claim:
            held.append(_locked(lock))
        elif owner[0] != claim[0]:
            raise _in_use(lock, f"another thread of process {os.getpid()}")

    try:
        world.from_main(hold)
        yield
    finally:
        for file in held:
            # Removed while locked: who opened the file before sees that it is gone.
            lock.unlink(missing_ok=True)
            file.close()
        if _held_by.get(place) is claim:
            del _held_by[place]


_held_by: dict[Path, tuple[int, object]] = {}  # threads: the system tells processes apart only


def _in_use(lock: Path, by: str) -> RunFolderError:
    return RunFolderError(
        "another job is writing there",
        got=f"{lock.parent}, in use by {by}",
        fix="wait for it or end it, or give another --out",
    )


def _locked(lock: Path) -> IO[str]:
    # Not flock: processes that decode images would inherit that and outlive a killed job.
    from fcntl import LOCK_EX, LOCK_NB, lockf

    while True:
        try:
            lock.parent.mkdir(parents=True, exist_ok=True)
            file = lock.open("a+", encoding="utf-8")
        except OSError as error:
            raise RunFolderError(
                "the run folder cannot be made", got=str(error), fix="give another --out"
            ) from error
        try:
            lockf(file, LOCK_EX | LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EAGAIN, errno.EACCES):
                with file:
                    file.seek(0)
                    raise _in_use(lock, file.read() or "an unnamed process") from None
            warnings.warn(
                f"{lock.parent} cannot be locked ({error}): see that no other job writes there",
                RuntimeWarning,
                stacklevel=2,
            )
        if _is_at(file, lock):
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()}")
            file.flush()
            return file
        file.close()


def _is_at(file: IO[str], path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def launched_rank() -> int:
    """The rank that the environment gives this process; 0 without a launcher."""
    return int(os.environ["RANK"]) if launched() else 0


def launched() -> bool:
    """Whether a launcher made this process a rank among several."""
    return all(name in os.environ for name in _LAUNCHED) and int(os.environ["WORLD_SIZE"]) > 1


@contextmanager
def join(device: str = "auto") -> Iterator[World]:
    """Join the ranks that a launcher such as torchrun started; alone without one.

    Parameters
    ----------
    device : str
        As in :class:`~psi_engine.config.RunConfig`. With CUDA each rank takes the GPU of its
        rank on the machine.

    Yields
    ------
    World
        A process group that is there already is used and left as it is.

    Raises
    ------
    InputError
        One GPU is named for several ranks, or a machine has more ranks than GPUs.
    """
    joined = dist.is_available() and dist.is_initialized()
    if not joined and not launched():
        yield ALONE
        return
    local_rank = int(os.environ.get("LOCAL_RANK", 0))
    local_size = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    where = _device_of(device, local_rank, local_size)
    if not joined:
        if where.type == "cuda":
            torch.cuda.set_device(where)
        backend = "cpu:gloo,cuda:nccl" if where.type == "cuda" else "gloo"
        dist.init_process_group(backend, timeout=_PATIENCE)
    rank = dist.get_rank()
    try:
        yield World(rank, dist.get_world_size(), local_rank, local_size, where)
    except PsiEngineError as error:
        error.rank = rank
        raise
    finally:
        if not joined:
            dist.destroy_process_group()


def _device_of(device: str, local_rank: int, local_size: int) -> torch.device:
    if device == "cpu" or (device == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if device not in ("auto", "cuda"):
        raise InputError(
            "one device is named for several ranks",
            got=f"device {device}",
            expected="auto, cpu or cuda: each rank takes the GPU of its own",
        )
    if (gpus := torch.cuda.device_count()) < local_size:
        raise InputError(
            "more ranks than GPUs",
            got=f"{local_size} ranks and {gpus} GPUs on one machine",
            fix=f"start torchrun with --nproc-per-node {gpus}, or give --device cpu",
        )
    return torch.device("cuda", local_rank)
