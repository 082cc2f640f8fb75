"""Settings of the swaps, and the names of what is compared."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from psi_engine.errors import InputError

HostKind = Literal["top", "random"]
Blend = Literal["hard", "feathered"]

HOSTS: tuple[HostKind, ...] = get_args(HostKind)
BLENDS: tuple[Blend, ...] = get_args(Blend)

CONDITIONS = ("aligned", "non-aligned", "random", "shuffled-position", "ablate-elsewhere")
"""What happens to a host (Section 4.4 of the paper), the claim first, then its controls."""

CONTROLS = CONDITIONS[1:]


@dataclass(frozen=True)
class SwapConfig:
    """Which channels are swapped, where, and how often."""

    top: int | None = None
    """Channels of highest PSI per layer; None = 10, or all that ``channels`` names."""
    channels: Sequence[str] = ()
    """``layer4``, ``layer4:3,7`` or ``layer4:0-63``; empty = every channel of the run."""
    hosts: Literal["top", "random", "both"] = "both"
    """Images swapped into: those that excite the channel most, random ones, or both."""
    blend: Literal["hard", "feathered", "both"] = "both"
    """A paste with hard edges (the paper's), with feathered ones, or both."""
    per_channel: int = 16
    """Hosts of each kind per channel, at most."""
    swap_patch: int | None = None
    """Side of the square in pixels; None = the patch's, at most a third of the image."""
    bootstrap: int = 1000
    """Resamples per interval."""
    seed: int = 0

    def __post_init__(self) -> None:
        whole = {
            "top": 1,
            "per_channel": 2,
            "swap_patch": 1,
            "bootstrap": 1,
            "seed": 0,
        }
        for name, least in whole.items():
            value = getattr(self, name)
            if value is None and name in ("top", "swap_patch"):
                continue
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise InputError(
                    f"{name} is out of range", got=repr(value), expected=f"at least {least}"
                )
        for name, choices in (("hosts", HOSTS), ("blend", BLENDS)):
            if getattr(self, name) not in (*choices, "both"):
                raise InputError(
                    f"unknown {name}",
                    got=repr(getattr(self, name)),
                    expected="one of " + ", ".join((*choices, "both")),
                )

    @property
    def host_kinds(self) -> tuple[HostKind, ...]:
        """The kinds of hosts asked for."""
        return tuple(kind for kind in HOSTS if self.hosts in (kind, "both"))

    @property
    def blends(self) -> tuple[Blend, ...]:
        """The blends asked for."""
        return tuple(blend for blend in BLENDS if self.blend in (blend, "both"))
