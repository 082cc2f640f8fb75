"""Small sparse autoencoders, and factories that make them as users would."""

from __future__ import annotations

import os
from collections.abc import Callable

import torch
from safetensors.torch import load_file
from torch import Tensor, nn


class Sae(nn.Module):
    """ReLU latents, the ``k`` largest of each row where it is given; ``forward`` reconstructs."""

    def __init__(self, channels: int, latents: int, k: int | None = None) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(3)
            self.encoder = nn.Linear(channels, latents)
            self.decoder = nn.Linear(latents, channels)
        self.k = k

    def encode(self, rows: Tensor) -> Tensor:
        latents = self.encoder(rows).relu()
        if self.k is None:
            return latents
        best = latents.topk(self.k, dim=1)
        return torch.zeros_like(latents).scatter(1, best.indices, best.values)

    def forward(self, rows: Tensor) -> Tensor:
        return self.decoder(self.encode(rows))


def of_maps() -> nn.Module:
    return Sae(8, 20)


def of_tokens() -> nn.Module:
    return Sae(64, 24, k=3).half()


def of_more_tokens() -> nn.Module:
    return Sae(64, 24, k=4).half()


def of_head() -> Callable[[Tensor], Tensor]:
    return lambda rows: torch.cat([rows.relu(), (-rows).relu()], dim=1)


def of_file() -> nn.Module:
    """As a user loads an autoencoder that lies in a file."""
    sae = Sae(8, 20)
    sae.load_state_dict(load_file(os.environ["SAE_FILE"]))
    return sae


def of_nothing() -> Callable[[Tensor], tuple[Tensor, int]]:
    return lambda rows: (rows, 1)


def of_other_width() -> nn.Module:
    return Sae(9, 20)


def of_one_row() -> Callable[[Tensor], Tensor]:
    return lambda rows: rows[:1]


def no_callable() -> int:
    return 3


HERE = __name__
