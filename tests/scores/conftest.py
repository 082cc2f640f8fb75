"""Small planted channels: a few directions, some noise, texts for the directions."""

from typing import NamedTuple

import pytest
import torch
from torch import Tensor


class World(NamedTuple):
    embeddings: Tensor  # (12, 20, 16)
    labels: Tensor
    texts: Tensor  # (24, 16): 12 concepts × 2 templates
    concept_ids: Tensor
    pool: Tensor  # (400, 16)
    bank: Tensor  # (80, 16): 40 concepts × 2 templates
    bank_ids: Tensor


@pytest.fixture
def world() -> World:
    generator = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(*shape, generator=generator)

    centres = normal(12, 16)
    kinds = torch.tensor([1, 1, 1, 1, 2, 2, 3, 3, 5, 5, 12, 12])
    labels = (torch.rand(12, 20, generator=generator) * kinds[:, None]).long()
    labels = (labels + torch.arange(12)[:, None]) % 12
    embeddings = centres[labels] + 0.4 * normal(12, 20, 16)
    texts = (centres[:, None] + 0.5 * normal(12, 2, 16)).flatten(0, 1)
    pool = centres[torch.randint(0, 12, (400,), generator=generator)] + 0.4 * normal(400, 16)
    return World(
        embeddings * torch.rand(12, 20, 1, generator=generator).add(0.5),
        labels,
        texts,
        torch.arange(12).repeat_interleave(2) * 10,
        pool,
        normal(80, 16),
        torch.arange(40).repeat_interleave(2),
    )
