"""What an NVIDIA H200 should take: the least by arithmetic, and what is aimed at.

3072 channels of 50 patches, k = 2..5; 100,000 images of 64 × 64 pixels. The floors are arithmetic
with a measured copy (4.3 TB/s) and matrix rate of such a card, not measurements of these works.
"""

from __future__ import annotations

from typing import NamedTuple


class Aim(NamedTuple):
    """Seconds of one work: the floor by arithmetic (None: not reckoned), and the goal."""

    floor: float | None
    goal: float


AIMS = {
    "S, M = 20": Aim(0.0025, 0.03),
    "S, M = 1000": Aim(0.12, 1.0),
    "Q, M = 1000": Aim(0.005, 0.02),
    "D, M = 1000": Aim(0.041, 0.3),
    "mining all images": Aim(0.0125, 0.1),
    "run fp16": Aim(None, 25.0),
    "run fp32": Aim(None, 45.0),
}
"""By the name of the row in ``gpu.json``."""

NEAR = 2.0
"""A work that takes at most so many times its floor has arrived."""
