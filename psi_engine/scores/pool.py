"""The reference patches that the pool nulls draw from."""

from __future__ import annotations

import torch
from torch import Tensor

from psi_engine.ops.exact import unit_rows

_KEPT = 1 << 28
# Bytes of normalised rows worth keeping: a usual pool of a few thousand rows is read many times.


class Pool:
    """Usable rows of a (n, dim) array, read and normalised when asked for.

    The rows stay where the caller holds them: with ``pool=None`` they are every embedding of the
    call, which would not fit twice.
    """

    def __init__(self, source: Tensor, usable: Tensor, device: torch.device) -> None:
        """Keep a view of ``source`` (n, dim) and the indices of its ``usable`` (n,) rows."""
        self._source = source
        self._index = torch.nonzero(usable)[:, 0]
        self._units: Tensor | None = None
        self.device = device
        self.dim = source.shape[1]

    def __len__(self) -> int:
        return len(self._index)

    def take(self, index: Tensor) -> Tensor:
        """Grid unit rows, float32 (..., dim) on the scoring device, for positions (...)."""
        if self._units is None and len(self) * self.dim * 4 <= _KEPT:
            parts = [self._read(part) for part in self._index.split(512)]
            self._units = torch.cat(parts)
        if self._units is not None:
            return self._units[index.to(self.device)]
        return self._read(self._index[index.to(self._index.device).flatten()]).unflatten(
            0, index.shape
        )

    def _read(self, where: Tensor) -> Tensor:
        return unit_rows(self._source[where].to(self.device)).rows
