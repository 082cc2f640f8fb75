"""What is saved of a refinement, so that a killed one goes on where it stopped."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

_MARK = "refining:"  # of its tensors among those of the miners


@dataclass
class Journal:
    """Tensors and facts of the layers that are being refined, and the names of those that are.

    Parameters
    ----------
    images : Tensor, int64 (n,)
        Ids of the images that the layers are refined on; what was saved for others is not taken.
    write : callable or None
        Given what is to be saved beside the miners' state; None = nothing is.
    every : int
        Images between two saved states.
    """

    images: Tensor
    write: Callable[[dict[str, Tensor]], None] | None = None
    every: int = 4096
    refined: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    _tensors: Mapping[str, Tensor] = field(default_factory=dict)
    _facts: dict[str, Any] = field(default_factory=dict)

    def read(self, state: Mapping[str, Tensor] | None) -> None:
        """Take over what a saved state holds of a refinement on the same images."""
        if state is None or f"{_MARK}facts" not in state:
            return
        facts = json.loads(bytes(state[f"{_MARK}facts"].tolist()).decode())
        if facts.pop("images") != self._images_key():
            return
        self.refined, self.notes = facts.pop("refined"), facts.pop("notes")
        self._facts = facts
        self._tensors = {
            name.removeprefix(_MARK): x for name, x in state.items() if name.startswith(_MARK)
        }

    def saved(self, layers: list[str]) -> tuple[dict[str, Any], dict[str, Tensor]] | None:
        """Facts and tensors that were saved of just these layers, if any."""
        if self._facts.get("layers") != layers:
            return None
        return dict(self._facts), dict(self._tensors)

    def save(self, layers: list[str], facts: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        """Save how far some layers are."""
        if self.write is None:
            return
        whole = {
            **facts, "layers": layers, "images": self._images_key(), "refined": self.refined,
            "notes": self.notes,
        }  # fmt: skip
        text = torch.tensor(list(json.dumps(whole).encode()), dtype=torch.uint8)
        self.write({f"{_MARK}{name}": x for name, x in {**tensors, "facts": text}.items()})

    def finish(self, layers: list[str], notes: list[str]) -> None:
        """Save that some layers are refined; their miners hold what was found."""
        self.refined += layers
        self.notes += notes
        self.save([], {}, {})

    def _images_key(self) -> str:
        return hashlib.blake2b(self.images.numpy().tobytes(), digest_size=8).hexdigest()
