"""Units whose kind is known, with everything the measures look at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from psi_engine.errors import InputError
from psi_engine.validation.plan import Plan


@dataclass(frozen=True)
class Suite:
    """One benchmark: units in a fixed order.

    name : ``concept-mix`` or ``planted-units``. plans : kind, half and classes of each unit.
    """

    name: str
    plans: list[Plan]
    image_ids: Tensor  # int64 (units, patches)
    embeddings: Tensor  # float32 (units, patches, dim)
    labels: Tensor  # int64 (units, patches), −1 = unknown
    pool: Tensor  # float32 (n, dim)
    weights: Tensor | None  # floating (units, patches), activations scaled to [0, 1]
    bottom: Tensor | None  # float32 (units, patches, dim), least activating images
    notes: tuple[str, ...]

    @property
    def purity(self) -> Tensor:
        """Share of a unit's patches whose class is one of its own; NaN for noise. float64."""
        shares = []
        for plan, labels in zip(self.plans, self.labels, strict=True):
            own = torch.isin(labels, torch.tensor(plan.classes, dtype=torch.int64))
            shares.append(own.double().mean() if plan.classes else torch.tensor(torch.nan).double())
        return torch.stack(shares)


def check_classes(usable: Sequence[int], what: str, total: int, fix: str) -> None:
    """Refuse too few classes for any polysemantic unit in both halves.

    Raises
    ------
    InputError
        Fewer than four usable classes.
    """
    if len(usable) < 4:
        raise InputError(
            f"too few classes for {what}",
            got=f"{len(usable)} usable of {total}",
            expected="at least 4, two in each half; better 20 or more",
            fix=fix,
        )
