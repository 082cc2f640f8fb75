import pytest
import torch


@pytest.fixture
def two_modes():
    """Six channels of 24 patches in two modes, float32 (6, 24, 8)."""
    generator = torch.Generator().manual_seed(0)
    side = (torch.arange(24) % 2).float()[:, None] * torch.randn(6, 1, 8, generator=generator) * 3
    return torch.randn(6, 24, 8, generator=generator) + side + 2
