"""Ranks as threads of one process: the same exchanges as torch.distributed, for quick tests."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from torch import Tensor

from psi_engine.distributed import World

T = TypeVar("T")


@dataclass
class Board:
    size: int
    slots: list[Any] = field(default_factory=list)
    barrier: threading.Barrier | None = None

    def __post_init__(self) -> None:
        self.slots = [None] * self.size
        self.barrier = threading.Barrier(self.size, timeout=120)


@dataclass(frozen=True)
class ThreadWorld(World):
    board: Board | None = None

    def all_gather(self, value: T) -> list[T]:
        self.board.slots[self.rank] = value
        self.board.barrier.wait()
        found = list(self.board.slots)
        self.board.barrier.wait()
        return found

    def gather(self, value: T) -> list[T] | None:
        found = self.all_gather(value)
        return found if self.main else None

    def from_main(self, work: Callable[[], T]) -> T:
        return self.all_gather(work() if self.main else None)[0]

    def exchange(self, x: Tensor, counts: list[int]) -> list[Tensor]:
        return [sent[self.rank] for sent in self.all_gather(x.split(counts))]


def on_ranks(size: int, work: Callable[[World], T]) -> list[T]:
    """What ``work`` gives on each rank; the first rank's error, when one fails."""
    board = Board(size)
    results: list[Any] = [None] * size
    errors: list[BaseException] = []

    def run(rank: int) -> None:
        try:
            results[rank] = work(ThreadWorld(rank, size, board=board))
        except threading.BrokenBarrierError:
            pass
        except BaseException as error:
            errors.append(error)
            board.barrier.abort()

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return results
