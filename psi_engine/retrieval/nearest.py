"""Which rows of a set lie nearest to a query: exactly, or almost in a large set."""

from __future__ import annotations

from collections.abc import Iterable
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from psi_engine.artifacts import atomic
from psi_engine.ops.exact import cosines

faiss: Any = import_module("faiss")  # its stubs lack what its Python side adds

APPROXIMATE_FROM = 100_000
"""Rows from which on a query looks at the likeliest parts only; see ``benchmarks/search.py``."""

PROBES = 96
"""Parts a query looks at there."""

_LISTS_PER_ROOT = 2
# Parts of a large set, in square roots of its rows.
_SAMPLED = 64
# Rows per part that the parts are learned from.
_SPARE = 3
# Candidates per row asked for: they are compared in 8 bits first, exactly afterwards.
_SHARE = 100
# Whoever wants more than one in so many rows is served exactly: the parts asked may hold too few.
_TIES = 16
# Candidates beyond: sums of another order may swap rows that lie equally near.


class Nearest:
    """Unit rows to search by cosine; made by :meth:`build` or :meth:`read`.

    Up to ``APPROXIMATE_FROM`` rows every row is compared (faiss's ``IndexFlatIP``). Larger sets
    are cut into parts around centroids, rows rounded to 8 bits (``IndexIVFScalarQuantizer``), and
    a query looks at the ``PROBES`` nearest parts. Similarities are computed anew from the exact
    rows either way, so their bits depend on the two rows alone. ``rows``, float32 (n, dim), is
    the index's own memory, to be read while it lives.
    """

    def __init__(self, index: Any) -> None:
        self._index = index
        large = isinstance(index, faiss.IndexRefine)
        self._parts = faiss.downcast_index(index.base_index) if large else None
        self._all = faiss.downcast_index(index.refine_index) if large else index
        count, dim = self._all.ntotal, self._all.d
        rows = faiss.rev_swig_ptr(self._all.get_xb(), count * dim) if count else np.empty(0, "f4")
        self.rows = torch.from_numpy(rows.reshape(count, dim))

    @classmethod
    def build(cls, parts: Iterable[Tensor], dim: int) -> Nearest:
        """Put unit rows together, float32 (n, dim) each, in their order."""
        every = faiss.IndexFlatIP(dim)
        for part in parts:
            every.add(part.numpy())
        if every.ntotal < APPROXIMATE_FROM:
            return cls(every)
        rows = faiss.rev_swig_ptr(every.get_xb(), every.ntotal * dim).reshape(-1, dim)
        lists = int(_LISTS_PER_ROOT * np.sqrt(every.ntotal))
        coarse = faiss.IndexIVFScalarQuantizer(
            faiss.IndexFlatIP(dim), dim, lists, faiss.ScalarQuantizer.QT_8bit,
            faiss.METRIC_INNER_PRODUCT,
        )  # fmt: skip
        coarse.train(rows[:: max(1, len(rows) // (_SAMPLED * lists))])
        coarse.add(rows)
        both = faiss.IndexRefine(coarse, every)
        both.ntotal = every.ntotal
        return cls(both)

    @classmethod
    def read(cls, path: Path) -> Nearest:
        """Read what :meth:`write` wrote."""
        return cls(faiss.read_index(str(path)))

    def write(self, path: Path) -> None:
        """Write as a faiss index, atomically."""
        with atomic(path) as temporary:
            faiss.write_index(self._index, str(temporary))

    def __len__(self) -> int:
        return len(self.rows)

    def nearest(
        self, queries: Tensor, count: int, allowed: NDArray[np.bool_] | None = None
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Rows of the greatest cosine to each query.

        Parameters
        ----------
        queries : Tensor, float32 (queries, dim)
            Grid unit rows (:func:`psi_engine.ops.exact.unit_rows`).
        count : int
        allowed : ndarray, bool (n,), optional
            Rows that may be found; None = all. Among fewer than ``APPROXIMATE_FROM`` the search
            is exact, and so it is where ``count`` is a large share of them.

        Returns
        -------
        tuple of ndarray
            int64 (queries, count) rows, nearest first, ties by row, −1 (or fewer columns) where
            there are not so many, and float32 cosines of the same shape.
        """
        if not len(self):
            none = np.empty((len(queries), 0))
            return none.astype(np.int64), none.astype(np.float32)
        choice = len(self) if allowed is None else int(allowed.sum())
        selector: dict[str, Any] = {}
        if allowed is not None:
            bits = np.packbits(allowed, bitorder="little")
            selector["sel"] = faiss.IDSelectorBitmap(bits)
        wanted = count + _TIES
        few = _SPARE * wanted <= choice // _SHARE
        if self._parts is None or choice < APPROXIMATE_FROM or not few:
            parameters = faiss.SearchParameters(**selector)
            index = self._all
        else:
            parameters = faiss.SearchParametersIVF(nprobe=PROBES, **selector)
            index, wanted = self._parts, _SPARE * wanted
        _, found = index.search(
            np.ascontiguousarray(queries), min(wanted, len(self)), params=parameters
        )
        near = cosines(queries[:, None], self.rows[torch.from_numpy(found.clip(0))])[:, 0].numpy()
        near[found < 0] = -np.inf
        order = np.lexsort((found, -near), axis=-1)[:, :count]
        return np.take_along_axis(found, order, 1), np.take_along_axis(near, order, 1)
