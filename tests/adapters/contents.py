"""Small made-up contents for the tests, each call with the same numbers."""

from __future__ import annotations

import torch

from psi_engine.adapters import Contents, Description, Exemplars, TopExamples

CHANNELS, K, IMAGES, GRID, DIM = 6, 5, 30, (4, 4), 8


def examples(layer: str = "layer4", channels: int = CHANNELS, k: int = K) -> TopExamples:
    """Distinct values that bfloat16 holds exactly, best first, at places of a 4 × 4 map."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.stack([torch.randperm(IMAGES, generator=generator)[:k] for _ in range(channels)])
    values = torch.arange(k, 0, -1).float() / 4 + torch.arange(channels)[:, None]
    positions = torch.randint(GRID[0] * GRID[1], (channels, k), generator=generator)
    return TopExamples(layer, ids, values, positions, GRID)


def whole() -> Contents:
    """Everything that one layer can have."""
    generator = torch.Generator().manual_seed(1)
    part = examples()
    images = torch.randint(
        0, 256, (CHANNELS, K, 3, 8, 8), dtype=torch.uint8, generator=generator
    ).numpy()
    masks = torch.zeros(CHANNELS, K, 1, 8, 8, dtype=torch.uint8)
    masks[..., 2:6, 3:7] = 1
    return Contents(
        examples=(part,),
        embedded={"layer4": torch.randn(CHANNELS, K, DIM, generator=generator)},
        exemplars={"layer4": Exemplars(images, masks.numpy())},
        descriptions=(
            Description("layer4", 0, 'a "red", square', 0.25),
            Description("layer4", 3, "fur", 1 / 3),
        ),
        encoder="colours",
    )


def same(a: TopExamples, b: TopExamples) -> None:
    """Check that ids, values, positions and channels are equal."""
    assert a.layer == b.layer
    assert torch.equal(a.image_ids, b.image_ids)
    assert torch.equal(a.values, b.values)
    assert torch.equal(a.positions, b.positions)
    assert torch.equal(a.numbers, b.numbers)
