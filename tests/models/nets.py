"""A small net and the factories that make it."""

from __future__ import annotations

import torch
from torch import nn

from psi_engine.data import Preprocess

SMALL = "shufflenet_v2_x0_5"


TIMM = "timm:mobilenetv3_small_050.lamb_in1k"


class Net(nn.Module):
    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.block1 = nn.Sequential(nn.Conv2d(3, width, 3), nn.BatchNorm2d(width), nn.ReLU())
        self.block2 = nn.Sequential(nn.Conv2d(width, 6, 3), nn.ReLU())
        self.head = nn.Linear(6, 5)
        self.unused = nn.Linear(1, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.block2(self.block1(x)).mean((2, 3)))


def build() -> nn.Module:
    return Net()


def build_with_preprocess() -> tuple[nn.Module, Preprocess]:
    return Net(), Preprocess(image_size=20, resize=24, interpolation="bicubic")


def build_nonsense() -> tuple[str, int]:
    return "not", 1


NETS = __name__
FACTORY = f"{NETS}:build"


def states_equal(a: nn.Module, b: nn.Module) -> bool:
    one, two = a.state_dict(), b.state_dict()
    return one.keys() == two.keys() and all(torch.equal(one[k], two[k]) for k in one)
