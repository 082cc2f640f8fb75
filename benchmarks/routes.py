"""What a user would write instead of ``psi.score``, with the packages there are.

``scikit-learn`` is the loop anybody would write: ``KMeans(n_init=10)`` and ``silhouette_score``
for every k, on the channel and on each null set, and scikit-learn's NMI for every permutation.
``faiss`` is the strongest peer on a CPU: its spherical K-means with ten restarts, silhouettes from
the Gram matrix, and NMI by counting, in NumPy. ``fast-pytorch-kmeans`` clusters by cosine in torch,
set after set. ``torch_kmeans`` and ``flash-kmeans`` take many sets at once, in so many as fit the
memory; ``cuml`` has no batches. NMI beside torch and cuML is torchmetrics'. D is NumPy in all.

None pays for what it can share: rotations and draws of texts are made once, outside the clock.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from importlib.util import find_spec
from multiprocessing import get_context
from typing import Any, NamedTuple

import numpy as np
from threadpoolctl import threadpool_limits

from benchmarks import fits
from benchmarks.problems import TEMPLATES, Vision, Words, clip_like, generator, unit, words

CLUSTERS = (2, 3, 4, 5)


class Size(NamedTuple):
    """How large the benchmark is, what the nulls are, and the seed: enough to rebuild its data."""

    channels: int = 3072
    patches: int = 50
    dim: int = 512
    replicates: int = 20
    concepts: int = 267
    pool: int = 4096
    s_null: str = "rotation-samples"
    seed: int = 0

    def vision(self, channels: Sequence[int], pool: int = 0) -> Vision:
        """Some of the channels, and the pool where it is asked for."""
        return clip_like(channels, self.patches, self.dim, pool=pool, seed=self.seed)

    def texts(self) -> tuple[Words, Words]:
        """The vocabulary, and a bank of unrelated texts three times as large."""
        return (
            words(self.concepts, self.dim, "vocabulary", seed=self.seed),
            words(3 * self.concepts, self.dim, "bank", seed=self.seed),
        )


class Route(NamedTuple):
    """How a user fits, takes silhouettes and takes NMIs.

    fit : sets (problems, n, dim) and k to labels (problems, n). silhouette : sets and labels to
    (problems,). Both are told the device. nmi : labels (n,) and (count, n) to (count,).
    """

    fit: Callable[[np.ndarray, int, str], np.ndarray]
    silhouette: Callable[[np.ndarray, np.ndarray, str], np.ndarray]
    nmi: Callable[[np.ndarray, np.ndarray], np.ndarray]
    needs: tuple[str, ...]  # what must import
    channels: int  # how many are scored where nothing else is asked for
    batched: bool = False  # all sets of all channels at once, in one process with all threads
    gpu: bool = False  # nothing to run without one


def one_by_one(fit: Callable[..., np.ndarray], on_device: bool = False) -> Any:
    """A clustering of one set, as one of many."""

    def fit_each(sets: np.ndarray, k: int, device: str) -> np.ndarray:
        where = (device,) if on_device else ()
        return np.stack([fit(rows, k, *where) for rows in sets])

    return fit_each


def each(silhouette: Callable[[np.ndarray, np.ndarray], float]) -> Any:
    """A silhouette of one set, as of many."""

    def silhouettes(sets: np.ndarray, labels: np.ndarray, device: str) -> np.ndarray:
        return np.array([silhouette(*pair) for pair in zip(sets, labels, strict=True)])

    return silhouettes


ROUTES = {
    "scikit-learn": Route(
        one_by_one(fits.fit_scikit_learn),
        each(fits.silhouette_scikit_learn),
        fits.nmi_scikit_learn,
        needs=("sklearn",),
        channels=8,
    ),
    "faiss": Route(
        one_by_one(fits.fit_faiss),
        each(fits.silhouette_gram),
        fits.nmi_counting,
        needs=("faiss",),
        channels=24,
    ),
    "fast-pytorch-kmeans": Route(
        one_by_one(fits.fit_fast_pytorch_kmeans, on_device=True),
        each(fits.silhouette_gram),
        fits.nmi_torchmetrics,
        needs=("fast_pytorch_kmeans", "psutil", "torchmetrics"),
        channels=2,
    ),
    "torch_kmeans": Route(
        fits.fit_all_torch_kmeans,
        fits.silhouettes_torch,
        fits.nmi_torchmetrics,
        needs=("torch_kmeans", "torchmetrics"),
        channels=1,
        batched=True,
    ),
    "cuml": Route(
        one_by_one(fits.fit_cuml),
        each(fits.silhouette_cuml),
        fits.nmi_torchmetrics,
        needs=("cuml", "torchmetrics"),
        channels=8,
        gpu=True,
    ),
    "flash-kmeans": Route(
        fits.fit_all_flash_kmeans,
        fits.silhouettes_torch,
        fits.nmi_torchmetrics,
        needs=("flash_kmeans", "torchmetrics"),
        channels=24,
        batched=True,
        gpu=True,
    ),
}


def missing(needs: Sequence[str], gpu: bool = False, device: str = "cpu") -> str | None:
    """Why something cannot run here, or None when it can."""
    absent = [name for name in needs if find_spec(name) is None]
    if absent:
        return f"not installed: {', '.join(absent)}"
    return "needs a CUDA device" if gpu and not device.startswith("cuda") else None


class Channel(NamedTuple):
    """What a route found in one channel, and the seconds it took for S, Q and D."""

    s: float
    q: float
    d: float
    s_null: np.ndarray
    q_null: np.ndarray
    d_null: np.ndarray
    seconds: np.ndarray


class Loop:
    """A route over some channels of the benchmark's data."""

    def __init__(
        self, size: Size, route: str, channels: Sequence[int], device: str = "cpu"
    ) -> None:
        self.size, self.route, self.device = size, ROUTES[route], device
        self.vision = size.vision(channels)
        vocabulary, bank = size.texts()
        self.texts, self.bank = vocabulary.embeddings, bank.embeddings
        rng = generator(size.seed, "what a user draws")
        self.shuffles = [rng.permutation(size.patches) for _ in range(size.replicates)]
        self.rotations = [_rotation(rng, size.patches) for _ in range(size.replicates)]
        drawn = [
            rng.choice(3 * size.concepts, size.concepts, replace=False)
            for _ in range(size.replicates)
        ]
        self.drawn = (np.stack(drawn)[:, :, None] * TEMPLATES + np.arange(TEMPLATES)).reshape(
            size.replicates, -1
        )

    def run(self) -> list[Channel]:
        """Score every channel."""
        every = range(len(self.vision.embeddings))
        groups = [every] if self.route.batched else [[c] for c in every]
        return [channel for group in groups for channel in self._score(group)]

    def _score(self, channels: Sequence[int]) -> Iterator[Channel]:
        """Score some channels together; each is given its share of the seconds."""
        vision, route = self.vision, self.route
        clock = [time.perf_counter()]
        sets = [x for c in channels for x in self._sets(vision.embeddings[c])]
        s, labels = separability(np.stack(sets), route, self.device)
        own = slice(None, None, 1 + self.size.replicates)
        clock.append(time.perf_counter())
        shuffled = [
            np.stack([classes, *(classes[order] for order in self.shuffles)])
            for classes in vision.labels[channels]
        ]
        q = [route.nmi(*pair) for pair in zip(labels[own], shuffled, strict=True)]
        clock.append(time.perf_counter())
        pairs = zip(vision.embeddings[channels], labels[own], strict=True)
        d = [self._distinctness(*pair) for pair in pairs]
        clock.append(time.perf_counter())
        seconds = np.diff(clock) / len(channels)
        by_channel = zip(s.reshape(len(channels), -1), q, d, strict=True)
        for s_each, q_each, (d_each, d_null) in by_channel:
            first = float(s_each[0]), float(q_each[0]), d_each
            yield Channel(*first, s_each[1:], q_each[1:], d_null, seconds)

    def _sets(self, rows: np.ndarray) -> Iterator[np.ndarray]:
        yield rows
        yield from self._null_sets(rows)

    def _null_sets(self, rows: np.ndarray) -> Iterator[np.ndarray]:
        if self.size.s_null == "rotation-samples":
            for rotation in self.rotations:
                yield unit(rotation @ rows)
        else:
            mean = unit(rows.sum(0))
            tangent = rows / (rows @ mean)[:, None] - mean
            for rotation in self.rotations:
                yield unit(rotation @ tangent + mean)

    def _distinctness(self, rows: np.ndarray, assignments: np.ndarray) -> tuple[float, np.ndarray]:
        inside = (np.unique(assignments)[:, None] == assignments).astype(rows.dtype)
        means = unit(inside @ rows)
        null = (means @ self.bank.T)[:, self.drawn]
        return float(gap(means @ self.texts.T)), gap(null.swapaxes(0, 1))


def separability(
    sets: np.ndarray, route: Route, device: str = "cpu"
) -> tuple[np.ndarray, np.ndarray]:
    """Best silhouette over k of every set and its labels; the smallest k on a tie."""
    best = np.full(len(sets), -np.inf)
    kept = np.zeros(sets.shape[:2], np.int64)
    for k in CLUSTERS:
        labels = route.fit(sets, k, device)
        score = route.silhouette(sets, labels, device)
        better = score > best
        best[better], kept[better] = score[better], labels[better]
    return np.maximum(best, 0.0), kept


def gap(similarities: np.ndarray) -> np.ndarray:
    """Mean over clusters of the best minus the second similarity: (..., k, texts) to (...)."""
    top = np.partition(similarities, -2, axis=-1)[..., -2:]
    return (top[..., 1] - top[..., 0]).mean(-1)


def _rotation(rng: np.random.Generator, n: int) -> np.ndarray:
    """Orthogonal (n, n) that keeps the vector of ones, Haar on its complement, float32."""
    basis = np.linalg.qr(np.column_stack([np.ones(n), rng.standard_normal((n, n - 1))]))[0][:, 1:]
    turn, upper = np.linalg.qr(rng.standard_normal((n - 1, n - 1)))
    return (basis @ (turn * np.sign(np.diag(upper))) @ basis.T + 1 / n).astype(np.float32)


class Crew:
    """Processes that run loops, each its part of the channels, with one thread.

    One problem is too small to share between threads; channels are what cores can share.
    """

    def __init__(self, processes: int) -> None:
        context = get_context("spawn")
        self._pools = [
            ProcessPoolExecutor(1, context, threadpool_limits, (1,)) for _ in range(processes)
        ]

    def warm_up(self, size: Size, route: str, channels: Sequence[int], processes: int) -> None:
        """Make the data, and score one channel in each process."""
        self._submit(_warm_up, size, route, channels, processes)

    def run(self, size: Size, route: str, channels: Sequence[int], processes: int) -> list[Channel]:
        """Score every channel once, in so many processes at a time."""
        parts = self._submit(_run, size, route, channels, processes)
        return [channel for part in parts for channel in part]

    def close(self) -> None:
        """End the processes."""
        for pool in self._pools:
            pool.shutdown()

    def _submit(
        self,
        task: Callable[..., Any],
        size: Size,
        route: str,
        channels: Sequence[int],
        processes: int,
    ) -> list[Any]:
        parts = [tuple(part.tolist()) for part in np.array_split(np.asarray(channels), processes)]
        chosen = zip(self._pools, parts, strict=False)
        return [x.result() for x in [pool.submit(task, size, route, part) for pool, part in chosen]]


_loop = cache(Loop)


def warm_up(size: Size, route: str, channels: Sequence[int], device: str = "cpu") -> None:
    """Score one channel against a few draws: libraries load, pools start."""
    Loop(size._replace(replicates=2), route, channels[:1], device).run()


def _warm_up(size: Size, route: str, channels: tuple[int, ...]) -> None:
    warm_up(size, route, channels)
    threadpool_limits(1)  # again: libraries loaded just now have their own pools
    _loop(size, route, channels)


def _run(size: Size, route: str, channels: tuple[int, ...]) -> list[Channel]:
    return _loop(size, route, channels).run()
