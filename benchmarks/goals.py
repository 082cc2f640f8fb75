"""What an NVIDIA H200 should take: the least by arithmetic, and what is aimed at.

3072 channels of 50 patches, k = 2..5; 100,000 images of 64 × 64 pixels. The floors are arithmetic
with a measured copy (4.3 TB/s) and matrix rate of such a card, not measurements of these works.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

CHANNELS, IMAGES = 3072, 100_000
"""The sizes that floors and goals are for."""

NEAR = 2.0
"""A work that takes at most so many times its floor has arrived."""

STEEPEST = 1.1
"""Slope of log seconds over log cost that counts as linear."""

_BATCHED = 0.99  # of the images: a last batch that is not full is left out


class Aim(NamedTuple):
    """Seconds of one work: the floor by arithmetic (None: not reckoned), and the goal."""

    floor: float | None
    goal: float


AIMS = {
    "S, M = 20": Aim(0.0025, 0.03),
    "S, M = 1000": Aim(0.12, 1.0),
    "Q, M = 1000": Aim(0.005, 0.02),
    "score D, M = 1000": Aim(0.041, 0.3),
    "mining all images": Aim(0.0125, 0.1),
    "mining all images, 1024 at once": Aim(0.0125, 0.1),
    "run fp16": Aim(None, 25.0),
    "run fp32": Aim(None, 45.0),
}
"""By the name of the row in ``gpu.json``; D's is all that naming adds to a score."""


def aim_of(row: Mapping[str, Any], settings: Mapping[str, Any]) -> Aim | None:
    """What a row is held against; None where nothing is, or it ran with other sizes."""
    channels = row.get("problems", settings.get("channels", CHANNELS))
    images = row.get("images", settings.get("images", IMAGES))
    by_image = row["what"].startswith(("mining", "run"))
    meant = images >= _BATCHED * IMAGES if by_image else channels == CHANNELS
    return AIMS.get(row["what"]) if meant else None
