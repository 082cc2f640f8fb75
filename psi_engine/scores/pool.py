"""The reference patches that the pool nulls draw from."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from psi_engine.ops.exact import near, quantise, unit_rows

_KEPT = 1 << 28
# Bytes of normalised rows worth keeping: a usual pool of a few thousand rows is read many times.


class Pool:
    """Usable rows of a (sets, rows, dim) array, read and normalised when asked for.

    The rows stay where the caller holds them, in whatever layout: with ``pool=None`` they are
    every embedding of the call, which would not fit twice, nor would an index of them all.
    """

    def __init__(self, source: Tensor, missing: Tensor, device: torch.device) -> None:
        """Keep a view of ``source``.

        Parameters
        ----------
        source : Tensor, floating (sets, rows, dim)
        missing : Tensor, int64 (m,)
            Ascending positions among the sets · rows that must not be drawn.
        device : torch.device
            Where the rows are wanted.
        """
        self._source = source
        # a position minus the missing ones before it: what usable row would have stood there
        self._gaps = (missing - torch.arange(len(missing), device=missing.device)).to(source.device)
        self._units: Tensor | None = None
        self._kept = _KEPT
        self.device = device
        self.dim = source.shape[-1]

    def __len__(self) -> int:
        return self._source.shape[0] * self._source.shape[1] - len(self._gaps)

    def keep_within(self, memory: int) -> None:
        """Keep normalised rows only where they fit so many bytes."""
        self._kept = min(_KEPT, memory)

    def take(self, index: Tensor) -> Tensor:
        """Grid unit rows, float32 (..., dim) on the scoring device, for positions (...)."""
        units = self._whole()
        if units is not None:
            return units[index.to(self.device)]
        return self._read(index.to(self._source.device).flatten()).unflatten(0, index.shape)

    def rows_of(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Grid unit rows, float32 (rows, dim), and which of them has each position (...).

        Every row once, however many positions ask for it.
        """
        units = self._whole()
        if units is not None:
            return units, index.to(self.device)
        needed, which = torch.unique(index, return_inverse=True)
        return self.take(needed), which.to(self.device)

    def mean(self) -> Tensor:
        """Mean of all usable unit rows: float32 (dim,), on the grid."""
        total = torch.zeros(self.dim, dtype=torch.float64, device=self.device)
        for part in self._parts():
            total += self.take(part).to(torch.float64).sum(0)  # exact on the grid, in any order
        return quantise(total / len(self))

    def _whole(self) -> Tensor | None:
        """All usable rows, where they are worth keeping."""
        if self._units is None and len(self) * self.dim * 4 <= self._kept:
            self._units = torch.empty(len(self), self.dim, device=self.device)
            for part in self._parts():
                self._units[part.to(self.device)] = self._read(part)
        return self._units

    def _parts(self) -> Iterator[Tensor]:
        """All positions in turn, int64, as many at once as are quickly normalised."""
        step = near(self._gaps, self.dim)
        for start in range(0, len(self), step):
            stop = min(start + step, len(self))
            yield torch.arange(start, stop, device=self._source.device)

    def _read(self, usable: Tensor) -> Tensor:
        place = usable + torch.searchsorted(self._gaps, usable, right=True)
        rows = self._source.shape[1]
        return unit_rows(self._source[place // rows, place % rows].to(self.device)).rows
