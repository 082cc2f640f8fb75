"""What a user would write instead of ``psi.score``: one channel after the other.

Two routes. ``scikit-learn`` is the loop anybody would write: ``KMeans(n_init=10)`` and
``silhouette_score`` for every k, on the channel and on each null set, and scikit-learn's NMI for
every permutation. ``faiss`` is the strongest peer on a CPU: its spherical K-means with ten
restarts, silhouettes from the Gram matrix, and NMI by counting, in NumPy. D is NumPy in both.

Neither pays for what it can share: rotations and draws of texts are made once, outside the clock.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from multiprocessing import get_context
from typing import Any, NamedTuple

import numpy as np
from threadpoolctl import threadpool_limits

from benchmarks.problems import TEMPLATES, Vision, Words, clip_like, generator, unit, words

Fit = Callable[[np.ndarray, int], np.ndarray]
"""``fit(rows (n, dim), k)``: labels (n,)."""

CLUSTERS = (2, 3, 4, 5)
RESTARTS = 10


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
    """How a user fits, takes silhouettes and takes NMIs."""

    fit: Fit
    silhouette: Callable[[np.ndarray, np.ndarray], float]
    nmi: Callable[[np.ndarray, np.ndarray], np.ndarray]


class Channel(NamedTuple):
    """What a route found in one channel, and the seconds it took for S, Q and D."""

    s: float
    q: float
    d: float
    s_null: np.ndarray
    q_null: np.ndarray
    d_null: np.ndarray
    seconds: np.ndarray


def fit_scikit_learn(rows: np.ndarray, k: int) -> np.ndarray:
    """Euclidean K-means on unit rows, the best of ten seedings by its own objective."""
    from sklearn.cluster import KMeans

    return KMeans(k, n_init=RESTARTS, random_state=0).fit(rows).labels_


def fit_faiss(rows: np.ndarray, k: int) -> np.ndarray:
    """Spherical K-means, the best of ten seedings; it stops once nothing changes."""
    import faiss

    means = faiss.Kmeans(
        rows.shape[1], k, nredo=RESTARTS, spherical=True, min_points_per_centroid=1, seed=1
    )
    means.train(rows)
    return means.index.search(rows, 1)[1][:, 0]


def silhouette_scikit_learn(rows: np.ndarray, labels: np.ndarray) -> float:
    """Mean cosine silhouette."""
    from sklearn.metrics import silhouette_score

    return float(silhouette_score(rows, labels, metric="cosine"))


def silhouette_gram(rows: np.ndarray, labels: np.ndarray) -> float:
    """Mean cosine silhouette from one matrix product and sums over the clusters."""
    distance = 1.0 - rows @ rows.T
    inside = (labels[:, None] == np.unique(labels)).astype(rows.dtype)
    sums, sizes = distance @ inside, inside.sum(0)
    own = inside.astype(bool)
    size = inside @ sizes
    within = (sums[own] - distance.diagonal()) / np.maximum(size - 1, 1)
    between = np.where(own, np.inf, sums / sizes).min(1)
    value = (between - within) / np.maximum(np.maximum(within, between), 1e-12)
    return float(np.where(size > 1, value, 0.0).mean())


def nmi_scikit_learn(assignments: np.ndarray, shuffled: np.ndarray) -> np.ndarray:
    """NMI of one labeling with many (count, patches), one call each."""
    from sklearn.metrics import normalized_mutual_info_score

    return np.array([normalized_mutual_info_score(assignments, row) for row in shuffled])


def nmi_counting(assignments: np.ndarray, shuffled: np.ndarray) -> np.ndarray:
    """NMI of one labeling with many permutations (count, patches) of another, at once."""
    count, patches = shuffled.shape
    a = np.unique(assignments, return_inverse=True)[1]
    b = np.unique(shuffled, return_inverse=True)[1].reshape(shuffled.shape)
    width = b.max() + 1
    cells = (a.max() + 1) * width
    place = np.arange(count)[:, None] * cells + a * width + b
    joint = np.bincount(place.ravel(), minlength=count * cells).reshape(count, -1, width)
    t_joint = _n_log_n(joint).sum((1, 2))
    t_a, t_b = _n_log_n(joint.sum(2)).sum(1), _n_log_n(joint.sum(1)).sum(1)
    whole = patches * np.log(patches)
    entropy = 2 * whole - t_a - t_b
    return np.where(entropy > 0, 2 * (whole + t_joint - t_a - t_b) / np.maximum(entropy, 1e-12), 0)


def _n_log_n(count: np.ndarray) -> np.ndarray:
    return count * np.log(np.maximum(count, 1))


ROUTES = {
    "scikit-learn": Route(fit_scikit_learn, silhouette_scikit_learn, nmi_scikit_learn),
    "faiss": Route(fit_faiss, silhouette_gram, nmi_counting),
}


class Loop:
    """A route over some channels of the benchmark's data."""

    def __init__(self, size: Size, route: str, channels: Sequence[int]) -> None:
        self.size, self.route = size, ROUTES[route]
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
        return [self._channel(c) for c in range(len(self.vision.embeddings))]

    def _channel(self, channel: int) -> Channel:
        rows, classes = self.vision.embeddings[channel], self.vision.labels[channel]
        clock = [time.perf_counter()]
        s, assignments = separability(rows, self.route)
        s_null = np.array([separability(x, self.route)[0] for x in self._null_sets(rows)])
        clock.append(time.perf_counter())
        shuffled = np.stack([classes, *(classes[order] for order in self.shuffles)])
        q = self.route.nmi(assignments, shuffled)
        clock.append(time.perf_counter())
        d, d_null = self._distinctness(rows, assignments)
        clock.append(time.perf_counter())
        return Channel(s, float(q[0]), d, s_null, q[1:], d_null, np.diff(clock))

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


def separability(rows: np.ndarray, route: Route) -> tuple[float, np.ndarray]:
    """Best silhouette over k and its labels; the smallest k on a tie."""
    best, kept = -np.inf, np.zeros(len(rows), np.int64)
    for k in CLUSTERS:
        labels = route.fit(rows, k)
        score = route.silhouette(rows, labels)
        if score > best:
            best, kept = score, labels
    return max(best, 0.0), kept


def objective(rows: np.ndarray, labels: np.ndarray) -> float:
    """Σ_j ‖Σ_{i∈C_j} z_i‖ in float64."""
    inside = (np.unique(labels)[:, None] == labels).astype(np.float64)
    return float(np.linalg.norm(inside @ rows, axis=1).sum())


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


def _warm_up(size: Size, route: str, channels: tuple[int, ...]) -> None:
    Loop(size, route, channels[:1]).run()
    threadpool_limits(1)  # again: libraries loaded just now have their own pools
    _loop(size, route, channels)


def _run(size: Size, route: str, channels: tuple[int, ...]) -> list[Channel]:
    return _loop(size, route, channels).run()
