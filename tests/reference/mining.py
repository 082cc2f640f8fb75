"""Mining by brute force: every site of every image in Python lists, sorted."""

from __future__ import annotations

import hashlib
import math

import numpy as np

MASK = (1 << 64) - 1
GOLDEN = 0x9E3779B97F4A7C15


def finalise(x: int) -> int:
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & MASK
    return x ^ (x >> 31)


def hashed(*keys: int) -> int:
    state = finalise(((keys[0] & MASK) + GOLDEN) & MASK)
    for key in keys[1:]:
        state = finalise(((state ^ (key & MASK)) + GOLDEN) & MASK)
    return state


def signed(x: int) -> int:
    return x - (1 << 64) if x >> 63 else x


def key_of(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def extremes(maps: np.ndarray, ids: list[int], k: int, sites: str, largest: bool) -> list[list]:
    """For each channel the first k of (value, image, u, v), best first."""
    out = []
    for c in range(maps.shape[1]):
        found = []
        for b, image in enumerate(ids):
            here = []
            for u in range(maps.shape[2]):
                for v in range(maps.shape[3]):
                    value = float(maps[b, c, u, v])
                    if math.isfinite(value):
                        value = 0.0 if value == 0 else value
                        here.append((-value if largest else value, image, u, v))
            here.sort()
            found += here[:1] if sites == "per-image" else here
        found.sort()
        out.append([(-a if largest else a, i, u, v) for a, i, u, v in found[:k]])
    return out


def reservoir(
    maps: np.ndarray, ids: list[int], k: int, seed: int, layer: str, channels: list[int]
) -> list[list]:
    """For each channel k random (value, image, u, v), by the priority of the image."""
    height, width = maps.shape[2:]
    out = []
    for row, c in enumerate(channels):
        found = []
        for b, image in enumerate(ids):
            priority = hashed(hashed(seed, key_of(layer), c), image)
            site = int((hashed(priority, 1) >> 11) * 2.0**-53 * height * width)
            u, v = divmod(site, width)
            value = float(maps[b, row, u, v])
            if math.isfinite(value):
                found.append((-signed(priority), image, u, v, value))
        found.sort()
        out.append([(value, i, u, v) for _, i, u, v, value in found[:k]])
    return out


def pool(ids: list[int], grid: tuple[int, int], n: int, seed: int, layer: str) -> list[tuple]:
    """n random (image, u, v): the first of every image, then the second of every image …"""
    height, width = grid
    key = hashed(seed, key_of(layer), key_of("pool"))
    found = []
    for image in ids:
        drawn = sorted(
            (signed(hashed(key, image * height * width + site)), site)
            for site in range(height * width)
        )
        for rank, (priority, site) in enumerate(drawn):
            found.append((rank, priority, image, *divmod(site, width)))
    found.sort()
    return [(image, u, v) for _, _, image, u, v in found[:n]]


def statistics(maps: np.ndarray) -> dict[str, np.ndarray]:
    x = np.moveaxis(maps.astype(np.float64), 1, 0).reshape(maps.shape[1], -1)
    rows: dict[str, list] = {
        name: []
        for name in ("minimum", "maximum", "mean", "variance", "sparsity", "nonfinite", "count")
    }
    for values in x:
        kept = [v for v in values if math.isfinite(v)]
        n = len(kept)
        mean = math.fsum(kept) / n if n else math.nan
        rows["minimum"].append(min(kept, default=math.nan))
        rows["maximum"].append(max(kept, default=math.nan))
        rows["mean"].append(mean)
        rows["variance"].append(math.fsum((v - mean) ** 2 for v in kept) / n if n else math.nan)
        rows["sparsity"].append(sum(v == 0 for v in kept) / n if n else math.nan)
        rows["nonfinite"].append(len(values) - n)
        rows["count"].append(n)
    return {name: np.array(column) for name, column in rows.items()}
