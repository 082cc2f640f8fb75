"""Sets of whole numbers as sorted ranges: which images or rows are done, which are missing."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Ranges:
    """A set of whole numbers, as ascending half-open ranges that do not touch.

    Make one with :meth:`of`, which sorts and joins.
    """

    parts: tuple[tuple[int, int], ...] = ()

    @classmethod
    def of(cls, parts: Iterable[Iterable[int]]) -> Ranges:
        """The union of ranges ``(start, stop)`` in any order; they may overlap."""
        joined: list[tuple[int, int]] = []
        for start, stop in sorted((start, stop) for start, stop in parts if start < stop):
            if joined and start <= joined[-1][1]:
                joined[-1] = (joined[-1][0], max(stop, joined[-1][1]))
            else:
                joined.append((start, stop))
        return cls(tuple(joined))

    def __len__(self) -> int:
        return sum(stop - start for start, stop in self.parts)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return iter(self.parts)

    def __or__(self, other: Ranges) -> Ranges:
        return Ranges.of([*self.parts, *other.parts])

    def __sub__(self, other: Ranges) -> Ranges:
        left: list[tuple[int, int]] = []
        for start, stop in self.parts:
            for cut, end in other.parts:
                if cut < stop and end > start:
                    left.append((start, min(cut, stop)))
                    start = max(start, end)
            left.append((start, stop))
        return Ranges.of(left)

    def __and__(self, other: Ranges) -> Ranges:
        return self - (self - other)

    def __str__(self) -> str:
        if not self.parts:
            return "none"
        return ", ".join(
            f"{start}" if stop == start + 1 else f"{start}–{stop - 1}" for start, stop in self.parts
        )

    def below(self, limit: int) -> Ranges:
        """The numbers below a limit."""
        return self & Ranges.of([(0, limit)])

    def slice(self, wanted: slice) -> Ranges:
        """The numbers at some places of the ascending order, without a step."""
        taken, before = [], 0
        for start, stop in self.parts:
            first, last = max(0, wanted.start - before), min(stop - start, wanted.stop - before)
            taken.append((start + first, start + last))
            before += stop - start
        return Ranges.of(taken)

    def indices(self) -> Tensor:
        """The numbers themselves, ascending, int64 (n,)."""
        parts = [torch.arange(start, stop) for start, stop in self.parts]
        return torch.cat(parts) if parts else torch.empty(0, dtype=torch.int64)
