"""A world whose answer is known: orthogonal classes, texts that are the classes, clear logits."""

from __future__ import annotations

import torch
from torch import Tensor

CLASSES, EACH, DIM = 40, 30, 48
PARENTS = {label: (f"parent {label % 5}",) for label in range(CLASSES)}


def labels() -> Tensor:
    return torch.arange(CLASSES).repeat(EACH)


def embeddings(noise: float = 0.05, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    spread = noise * torch.randn(CLASSES * EACH, DIM, generator=generator)
    return torch.nn.functional.normalize(torch.eye(DIM)[labels()] + spread, dim=1)


def texts() -> Tensor:
    return torch.eye(DIM)[:CLASSES]


def logits(seed: int = 0) -> Tensor:
    """Outputs in another order than the classes, and two that answer to none."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(CLASSES * EACH, CLASSES + 2, generator=generator)
    values[torch.arange(len(values)), CLASSES + 1 - labels()] += 9.0
    return values
