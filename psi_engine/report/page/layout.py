"""Channels laid out in two dimensions: alike patches, near each other."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

FEW, MANY = 16, 20_000
"""Below and above these numbers of channels, principal components serve instead of t-SNE."""

_COMPONENTS, _ITERATIONS = 50, 500
_SEED = 0


class Layout(NamedTuple):
    """Places of channels: ``places`` float64 (channels, 2) in [0, 1], NaN where there is none.

    how : what was done, in words.
    """

    places: NDArray[np.float64]
    how: str


def lay_out(vectors: NDArray[np.float32]) -> Layout:
    """Lay vectors out in two dimensions, always in the same place.

    Parameters
    ----------
    vectors : ndarray, float32 (channels, dim)
        Rows that are not finite get no place.

    Returns
    -------
    Layout
        t-SNE (van der Maaten and Hinton 2008) of the first 50 principal components, started from
        the first two; or those two alone for fewer than 16 channels or more than 20,000.
    """
    places = np.full((len(vectors), 2), np.nan)
    there = np.isfinite(vectors).all(1)
    rows = vectors[there].astype(np.float64)
    if len(rows) == 0:
        return Layout(places, "no channel has patches to place it by")
    main = _principal(rows, _COMPONENTS)
    if FEW <= len(rows) <= MANY and main.shape[1] >= 2:
        flat = _neighbours(main)
        how = (
            f"t-SNE of the first {main.shape[1]} principal components of {len(rows):,} channels "
            "(mean embedding of their patches), fixed seed: neighbours mean something, distances "
            "across the map do not"
        )
    else:
        flat = np.zeros((len(rows), 2))
        flat[:, : min(2, main.shape[1])] = main[:, :2]
        reason = "too few" if len(rows) < FEW else "too many"
        how = (
            f"first two principal components of {len(rows):,} channels (mean embedding of their "
            f"patches); {reason} of them for t-SNE"
        )
    low, high = flat.min(0), flat.max(0)
    places[there] = (flat - low) / np.where(high > low, high - low, 1.0)
    return Layout(places, how)


def _principal(rows: NDArray[np.float64], count: int) -> NDArray[np.float64]:
    """Coordinates along the first principal components; of each the largest loading is positive."""
    centred = rows - rows.mean(0)
    left, sizes, right = np.linalg.svd(centred, full_matrices=False)
    kept = min(count, int((sizes > sizes[0] * 1e-6).sum()) if sizes[0] > 0 else 1)
    largest = np.abs(right[:kept]).argmax(1)
    signs = np.where(right[np.arange(kept), largest] < 0, -1.0, 1.0)
    scores: NDArray[np.float64] = left[:, :kept] * sizes[:kept] * signs
    return scores


def _neighbours(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits

    start = rows[:, :2] / rows[:, 0].std() * 1e-4  # the scale scikit-learn starts its own PCA at
    tsne = TSNE(
        perplexity=min(30.0, (len(rows) - 1) / 3),
        init=start.astype(np.float32),
        learning_rate="auto",
        max_iter=_ITERATIONS,
        random_state=_SEED,
    )
    # Threads add the repulsive forces up in the order they finish in.
    with threadpool_limits(limits=1):
        places: NDArray[np.float64] = tsne.fit_transform(rows.astype(np.float32)).astype(np.float64)
    return places
