"""Receptive fields the slow ways: the recursion over a written-out list, and pixel by pixel."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn


def recursion(layers: list[tuple[int, int, int, int]]) -> tuple[float, float, float]:
    """(size, jump, centre of unit 0) after layers of (kernel, stride, padding, dilation)."""
    size, jump, start = 1.0, 1.0, 0.5
    for kernel, stride, padding, dilation in layers:
        reach = dilation * (kernel - 1)
        size = size + reach * jump
        start = start + (reach / 2 - padding) * jump
        jump = jump * stride
    return size, jump, start


def resnet50(stages: int) -> list[tuple[int, int, int, int]]:
    """The widest path of torchvision's ResNet-50 through its first stages."""
    path = [(7, 2, 3, 1), (3, 2, 1, 1)]
    for stage, blocks in enumerate((3, 4, 6, 3)[:stages]):
        for block in range(blocks):
            stride = 2 if stage > 0 and block == 0 else 1
            path += [(1, 1, 0, 1), (3, stride, 1, 1), (1, 1, 0, 1)]
    return path


def touched(module: nn.Module, x: torch.Tensor, u: int, v: int) -> np.ndarray:
    """Which pixels move unit (u, v) of any channel: bool (H, W), by the gradient of its sum."""
    x = x.clone().requires_grad_()
    module(x)[0, :, u, v].sum().backward()
    return (x.grad[0] != 0).any(0).numpy()


def extent(mask: np.ndarray) -> tuple[int, int, int, int]:
    """First and one past the last row and column of a mask."""
    rows, columns = np.where(mask.any(1))[0], np.where(mask.any(0))[0]
    return rows[0], rows[-1] + 1, columns[0], columns[-1] + 1


def window(centre: float, length: int, side: int) -> tuple[int, int]:
    """The window of ``length`` pixels nearest to a centre that lies in [0, side)."""
    places = [(abs(first + length / 2 - centre), -first) for first in range(side - length + 1)]
    first = -min(places)[1]
    return first, first + length


def energy_side(energy: np.ndarray, y: float, x: float, share: float) -> int:
    """Side of the smallest window centred at (y, x) that holds a share of the energy."""
    side = energy.shape[0]
    for length in range(1, side):
        held = 0.0
        for row in range(side):
            for column in range(side):
                inside = (
                    row >= y - length / 2
                    and row + 1 <= y + length / 2
                    and column >= x - length / 2
                    and column + 1 <= x + length / 2
                )
                held += energy[row, column] if inside else 0.0
        if held >= share * energy.sum():
            return length
    return side
