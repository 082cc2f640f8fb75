"""Embeddings to benchmark on: generated, keyed by a seed, the same on every machine.

Real embeddings lie in a cone (two random images have a cosine far above 0) and vary most along
few directions. Both shape the clustering problem, so :func:`clip_like` has both: a common
direction, and modes and noise whose variance falls as 1/rank over the dimensions.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple
from zlib import crc32

import numpy as np

CLASSES = 200
TEMPLATES = 6
_BLOCK = 1 << 14
_PARTS, _HELD = 64, 16  # of moving windows


class Vision(NamedTuple):
    """embeddings : float32 (channels, patches, dim), unit rows. labels : int64 (channels, patches).

    pool : float32 (n, dim), unit rows.
    """

    embeddings: np.ndarray
    labels: np.ndarray
    pool: np.ndarray


class Words(NamedTuple):
    """embeddings : float32 (concepts · templates, dim), unit rows. concepts : int64, of each."""

    embeddings: np.ndarray
    concepts: np.ndarray


def generator(seed: int, name: str) -> np.random.Generator:
    """Randomness of one purpose."""
    return np.random.default_rng([seed, crc32(name.encode())])


def unit(x: np.ndarray) -> np.ndarray:
    """Rows of length one, float32."""
    return (x / np.linalg.norm(x, axis=-1, keepdims=True)).astype(np.float32)


def clip_like(
    channels: Sequence[int], patches: int, dim: int, *, pool: int = 0, seed: int = 0
) -> Vision:
    """Channels of 1 to 5 modes in one cone; mean cosine within a channel about 0.5 to 0.75.

    Three patches in five carry the class of their mode, the others any of 200. Channel c is the
    same whichever others are asked for.
    """
    embeddings = np.empty((len(channels), patches, dim), np.float32)
    labels = np.empty((len(channels), patches), np.int64)
    for at, channel in enumerate(channels):
        rng = generator(seed, f"channel {channel}")
        modes = int(rng.integers(1, 6))
        mode = rng.integers(0, modes, patches)
        apart, noise = rng.uniform(0.25, 0.65), rng.uniform(0.6, 0.9)
        own = 0.25 * _directions(rng, 1, dim)
        places = own + apart * _directions(rng, modes, dim)
        embeddings[at] = _in_cone(places[mode] + noise * _directions(rng, patches, dim))
        classes = rng.integers(0, CLASSES, modes)[mode]
        follows = rng.random(patches) < 0.6
        labels[at] = np.where(follows, classes, rng.integers(0, CLASSES, patches))
    rng = generator(seed, "pool")
    around = 0.45 * _directions(rng, pool, dim) + 0.75 * _directions(rng, pool, dim)
    return Vision(embeddings, labels, _in_cone(around))


def moving_windows(
    channels: int, patches: int, dim: int, *, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Any number of channels as views of little memory: embeddings and labels.

    Row i of channel c is the window of ``dim`` numbers at place c of a track i, labels are the
    tracks' at that place. Tracks hold a number for a while, so that windows have about 32
    dimensions; all share one part, and modes, their distance and the noise change 64 times on
    the way, as much as channels of :func:`clip_like` differ. Channels are evenly spaced; windows
    of neighbours overlap.

    Returns
    -------
    tuple of ndarray
        float32 (channels, patches, dim), of any length, and int16 (channels, patches); neither is
        contiguous nor to be written to.
    """
    places = max(channels, _PARTS * dim)
    held = (places + dim) // _HELD + 1
    part = np.arange(held) * _PARTS // held
    rng = generator(seed, "moving windows")
    shared, centres = (rng.standard_normal((n, held), np.float32) for n in (1, 5))
    modes = rng.integers(1, 6, _PARTS)
    apart, noise = rng.uniform(0.25, 0.65, _PARTS), rng.uniform(0.6, 0.9, _PARTS)
    mode = rng.integers(0, modes, (patches, _PARTS))
    classes = rng.integers(0, CLASSES, (5, _PARTS))
    tracks = np.empty((patches, held * _HELD), np.float32)
    labels = np.empty((patches, held * _HELD), np.int16)
    for track in range(patches):
        own = mode[track][part]
        values = shared[0] + apart[part] * centres[own, np.arange(held)]
        values += noise[part] * rng.standard_normal(held, np.float32)
        tracks[track] = np.repeat(values.astype(np.float32), _HELD)
        follows = rng.random(held) < 0.6
        known = np.where(follows, classes[own, part], rng.integers(0, CLASSES, held))
        labels[track] = np.repeat(known, _HELD)
    step = places // channels
    windows = np.lib.stride_tricks.sliding_window_view(tracks, dim, axis=1)
    rows = windows[:, : channels * step : step].transpose(1, 0, 2)
    return rows, labels[:, : channels * step : step].T


def words(concepts: int, dim: int, name: str, *, seed: int = 0) -> Words:
    """Texts in a cone of their own: each concept in six templates."""
    rng = generator(seed, f"words {name}")
    meaning = np.repeat(_directions(rng, concepts, dim), TEMPLATES, 0)
    wording = np.tile(_directions(rng, TEMPLATES, dim), (concepts, 1))
    own = _directions(rng, concepts * TEMPLATES, dim)
    rows = _in_cone(0.6 * meaning + 0.3 * wording + 0.2 * own)
    return Words(rows, np.repeat(np.arange(concepts), TEMPLATES))


def prototypes(
    count: int, dim: int, name: str, *, concepts: int = 2000, seed: int = 0
) -> Iterator[np.ndarray]:
    """Centred cluster prototypes in blocks: one of so many concepts each, and a part of its own."""
    meanings = _directions(generator(seed, "meanings"), concepts, dim)
    for start in range(0, count, _BLOCK):
        rng = generator(seed, f"prototypes {name} {start}")
        rows = min(_BLOCK, count - start)
        own = _directions(rng, rows, dim)
        yield unit(0.7 * meanings[rng.integers(0, concepts, rows)] + 0.6 * own)


def one_mode(problems: int, patches: int, dim: int, *, seed: int = 0) -> np.ndarray:
    """One Gaussian around a mean, rows normalised: no cluster to find."""
    rng = generator(seed, "one mode")
    x = rng.standard_normal((problems, patches, dim)) / np.sqrt(dim)
    x[..., 0] += 1.0
    return unit(x)


def sphere(problems: int, patches: int, dim: int, *, seed: int = 0) -> np.ndarray:
    """Uniform directions."""
    return unit(generator(seed, "sphere").standard_normal((problems, patches, dim)))


def blobs(problems: int, patches: int, dim: int, *, seed: int = 0) -> np.ndarray:
    """2 to 10 tight blobs in random directions."""
    rng = generator(seed, "blobs")
    sets = np.empty((problems, patches, dim), np.float32)
    for p in range(problems):
        count = int(rng.integers(2, 11))
        centres = unit(rng.standard_normal((count, dim)))
        spread = rng.standard_normal((patches, dim)) * 0.3 / np.sqrt(dim)
        sets[p] = unit(centres[rng.integers(0, count, patches)] + spread)
    return sets


def from_file(file: Path, problems: int) -> np.ndarray:
    """Unit rows of what :func:`read` gives."""
    return unit(read(file, problems).astype(np.float64))


def read(file: Path, problems: int) -> np.ndarray:
    """``embeddings`` (channels, patches, dim) in an npz or safetensors file, at most so many."""
    if file.suffix == ".npz":
        with np.load(file) as arrays:
            x = arrays["embeddings"]
    else:
        from safetensors.numpy import load_file

        x = load_file(file)["embeddings"]
    every = np.linspace(0, len(x) - 1, min(problems, len(x))).astype(int)
    return x[every]


def _directions(rng: np.random.Generator, count: int, dim: int) -> np.ndarray:
    """Gaussian rows of length about one whose variance falls as 1/rank."""
    scale = np.arange(1, dim + 1, dtype=np.float32) ** -0.5
    scale /= np.linalg.norm(scale)
    return rng.standard_normal((count, dim), np.float32) * scale


def _in_cone(offsets: np.ndarray) -> np.ndarray:
    """Unit rows around the last axis, along which the offsets hardly vary."""
    offsets[..., -1] += 1.0
    return unit(offsets)
