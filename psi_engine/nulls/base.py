"""What a null sees, and what it gives back.

A null is a function ``null(batch, call) -> NullSummary``: it compares the observed value of its
component for every channel of the batch with draws made under its own model. All channels of a
batch have the same number of valid patches.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor

from psi_engine.config import Backend, ScoreConfig
from psi_engine.ops.exact import cosines
from psi_engine.ops.random import hash_keys, string_key
from psi_engine.ops.separability import (
    PooledSeparability,
    Separability,
    pooled_separability,
    rotated_separability,
    separability,
)
from psi_engine.scores.distinctness import Texts
from psi_engine.scores.pool import Pool
from psi_engine.statistics import NullSummary

T = TypeVar("T")

_CACHE = 1 << 22
# Bytes that stay near a CPU core: large temporaries cost more in page faults than in arithmetic.


@dataclass
class Batch:
    """Channels with the same number n of valid patches, and what was observed in them."""

    ids: Tensor  # int64 (channels,), keys of the randomness
    units: Tensor  # float32 (channels, n, dim), grid unit rows
    grams: Tensor  # float32 (channels, n, n)
    labels: Tensor | None  # int64 (channels, n)
    n_clusters: Tensor  # int64 (channels,)
    assignments: Tensor  # int64 (channels, n)
    clarity: Tensor  # float64 (channels,)
    s: Tensor  # float64 (channels,)
    q: Tensor | None
    d: Tensor | None

    @property
    def n(self) -> int:
        """Patches per channel."""
        return self.grams.shape[-1]


@dataclass
class Call:
    """One call of the scorer: settings, what channels share, and what was computed once."""

    config: ScoreConfig
    device: torch.device
    backend: Backend  # as asked for: each operation takes its kernel or, for auto, says why not
    memory: int
    pool: Pool
    texts: Texts | None
    unrelated: Texts | None
    notes: list[str]
    tallies: dict[str, int] = field(default_factory=dict)
    _once: dict[Hashable, object] = field(default_factory=dict)
    _latest: dict[Hashable, tuple[Hashable, object]] = field(default_factory=dict)

    def once(self, key: Hashable, compute: Callable[[], T]) -> T:
        """The value of ``compute()``, computed the first time the key is met in this call."""
        if key not in self._once:
            self._once[key] = compute()
        return self._once[key]  # type: ignore[return-value]

    def known(self, key: Hashable) -> object | None:
        """What :meth:`once` computed for a key, or None if it was not asked."""
        return self._once.get(key)

    def latest(self, name: Hashable, key: Hashable, compute: Callable[[], T]) -> T:
        """Like :meth:`once` for what is large: a new key under a name drops the one before it."""
        if name not in self._latest or self._latest[name][0] != key:
            self._latest.pop(name, None)  # before the new one is made: never both
            self._latest[name] = key, compute()
        return self._latest[name][1]  # type: ignore[return-value]

    @property
    def centre(self) -> Tensor | None:
        """What D's ``margin`` takes off, the pool's mean: float32 (dim,); None elsewhere."""
        if self.config.d_measure != "margin":
            return None
        return self.once("centre", self.pool.mean)

    @property
    def centre_similarities(self) -> Tensor | None:
        """Similarities of :attr:`centre` to the texts: float32 (texts,); None without one."""
        if self.centre is None or self.texts is None:
            return None
        return cosines(self.centre[None], self.texts.rows)[0]

    def note(self, text: str) -> None:
        """Tell the caller something, once."""
        if text not in self.notes:
            self.notes.append(text)

    def tally(self, text: str, count: int) -> None:
        """Count something over the batches; it becomes one note, "COUNT text"."""
        if count:
            self.tallies[text] = self.tallies.get(text, 0) + count

    def keys(self, stream: str, *parts: Tensor | int) -> Tensor:
        """Randomness of a named purpose: int64, the broadcast shape of the parts."""
        return hash_keys(self.config.seed, string_key(stream), *parts, device=self.device)

    def replicates(self) -> Tensor:
        """Indices of the replicates, int64 (replicates,)."""
        return torch.arange(self.config.replicates, device=self.device)

    def separability(self, grams: Tensor, keys: Tensor) -> Separability:
        """S of each Gram matrix with this call's solver."""
        return separability(grams, keys, **self._solver(grams.shape[-1]))

    def rotated_separability(
        self, rotations: Tensor, products: Tensor, scale: Tensor, shift: float, keys: Tensor
    ) -> Tensor:
        """S of each channel's inner products under each rotation: float64 (channels, m)."""
        options = self._solver(products.shape[-1])
        return rotated_separability(rotations, products, scale, shift, keys, **options)

    def pooled_separability(self, positions: Tensor, keys: Tensor) -> PooledSeparability:
        """S and mean cosine of sets of the pool: float64 (m,) each; positions int64 (m, n)."""
        rows, indices = self.pool.rows_of(positions)
        return pooled_separability(rows, indices, keys, **self._solver(positions.shape[1]))

    def _solver(self, patches: int) -> dict[str, Any]:
        config = self.config
        return {
            "k_min": config.k_min,
            "k_max": min(config.k_max, patches - 1),
            "solver": config.solver,
            "restarts": config.restarts,
            "backend": self.backend,
            "memory": self.memory,
        }

    def chunk(self, bytes_each: int) -> int:
        """How many items of this size fit the memory budget, at least one."""
        return max(1, self.memory // max(1, bytes_each))

    def near_chunk(self, bytes_each: int) -> int:
        """How many items to pass over together when little is done to each: what a cache holds."""
        if self.device.type != "cpu":
            return self.chunk(bytes_each)
        return max(1, min(self.memory, _CACHE) // max(1, bytes_each))


NullFunction = Callable[[Batch, Call], NullSummary]
