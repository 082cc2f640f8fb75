"""What a part of the validation of a run is: what it gets, and what it gives back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa

from psi_engine.errors import InputError
from psi_engine.types import Progress

if TYPE_CHECKING:
    from psi_engine.stored import StoredRun

Tables = Mapping[str, pa.Table]
"""Tables of a part by their short names."""


@dataclass(frozen=True)
class Options:
    """Settings of the parts; each part names those that its tables depend on."""

    bootstrap: int = 1000
    """Resamples behind every interval."""
    replicates: int | None = None
    """Draws of nulls that channels share; None = as many as the run's."""
    channel_replicates: int = 20
    """Draws, at most, of nulls that every channel needs its own of."""
    null_channels: int = 200
    """Random sets per layer that are scored as if they were channels."""
    second_encoder: str | None = None
    """Encoder to compare the run's with; None = for the demo's own, its sister, else none."""
    second_encoder_weights: str | None = None
    """A pretrained tag or a file; None = the encoder's default."""
    examples: int = 2
    """Channels shown of the highest PSI, of the lowest, and of the lowest called monosemantic, in
    each layer."""
    variants: bool = False
    """Also compare what must be mined or cut anew: a larger K, other crops, other site policies."""
    sets: int = 100
    """Image sets of the ground truth per kind."""
    units: int = 100
    """Planted units of the ground truth per kind."""
    coarse: str | None = None
    """A file that maps classes to parents, for the ground truth; None = no related kinds."""
    seed: int = 0
    device: str | None = None
    """Where models run; None = as the run says. Never changes what a table means."""

    def __post_init__(self) -> None:
        for name, least in (
            ("bootstrap", 20), ("channel_replicates", 2), ("null_channels", 4), ("examples", 1),
            ("seed", 0),
        ):  # fmt: skip
            if getattr(self, name) < least:
                raise InputError(
                    f"{name} is too small", got=getattr(self, name), expected=f"at least {least}"
                )
        if self.replicates is not None and self.replicates < 2:
            raise InputError("replicates is too small", got=self.replicates, expected="at least 2")


@dataclass(frozen=True)
class Context:
    """What a part works on.

    stored : the run. options : the settings. progress : ``progress(what, done, total)`` or None.
    folder : ``RUN/validation/PART``, for files of the part's own; made by the part that uses it.
    """

    stored: StoredRun
    options: Options
    folder: Path
    progress: Progress | None = None

    def tell(self, what: str, done: int, total: int) -> None:
        """Report progress where somebody listens."""
        if self.progress is not None:
            self.progress(what, done, total)


@dataclass(frozen=True)
class Result:
    """What a part found.

    tables : by short name, in the order they are listed. notes : what a reader must know to read
    them: fallbacks, what was left out and why. headline : the finding in a line or two.
    """

    tables: Tables
    notes: tuple[str, ...] = ()
    headline: tuple[str, ...] = ()


def _always(context: Context) -> str | None:
    return None


def _on_nothing_else(context: Context) -> str:
    return ""


@dataclass(frozen=True)
class Part:
    """One part; :mod:`psi_engine.validation.parts` says how to write one.

    name : as the command line names it. compute : makes the tables. draw : ``draw(tables, stem)``
    writes ``stem.png``, ``.svg``, ``.pdf`` (and further files that start with the stem's name) and
    returns their paths. needs : the reason why the part cannot be had, or None. options : names
    of the settings that the tables depend on. version : raised when the computation changes.
    depends : key of what the tables depend on beside the scores and the options.
    """

    name: str
    compute: Callable[[Context], Result]
    draw: Callable[[Tables, Path], list[Path]]
    needs: Callable[[Context], str | None] = field(default=_always)
    options: tuple[str, ...] = ()
    version: int = 1
    depends: Callable[[Context], str] = field(default=_on_nothing_else)
