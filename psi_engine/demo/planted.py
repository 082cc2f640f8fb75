"""Units whose kind is known: what the scorer finds in them can be checked.

They stand behind the classifier's logits as one flat layer. A ``mono`` unit is one class's
log odds; a ``poly`` unit is the largest of two, three or five, of classes that share neither
shape nor texture; a ``random`` unit fires with no regard to what a picture shows.

Log odds, the logit of the class's probability, because a raw logit also grows with whatever
makes all logits of a picture large: only 72 % of its strongest fifty pictures show its class,
98 % with the odds. Each is standardised over pictures of its own class that no training saw, so
that every class of a poly unit gets its share of the strongest pictures.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from psi_engine.demo.world import CLASSES, SIDE
from psi_engine.ops.random import hash_keys, permutations, string_key, uniform

KINDS = ("mono", "poly2", "poly3", "poly5", "random")
PER_KIND = 32
_SIZES = {"mono": 1, "poly2": 2, "poly3": 3, "poly5": 5, "random": 0}
_WIDEST = max(_SIZES.values())


def planted_kinds() -> tuple[str, ...]:
    """Kind of each planted unit, in the layer's channel order."""
    return tuple(kind for kind in KINDS for _ in range(PER_KIND))


def planted_classes(seed: int = 0) -> tuple[tuple[int, ...], ...]:
    """Labels of the classes each planted unit answers to; empty for random units."""
    classes: list[tuple[int, ...]] = []
    for unit, kind in enumerate(planted_kinds()):
        if kind == "mono":
            classes.append((unit % len(CLASSES),))
        else:
            classes.append(_unrelated(seed, unit, _SIZES[kind]))
    return tuple(classes)


def _unrelated(seed: int, unit: int, size: int) -> tuple[int, ...]:
    """Draw classes that pairwise share neither shape nor texture."""
    attempt = 0
    while True:
        key = hash_keys(seed, string_key("demo/planted"), unit, attempt)
        chosen: list[int] = []
        for label in permutations(key, len(CLASSES)).tolist():
            if len(chosen) == size:
                return tuple(sorted(chosen))
            shape, texture = CLASSES[label]
            if all(shape != CLASSES[c][0] and texture != CLASSES[c][1] for c in chosen):
                chosen.append(label)
        attempt += 1


def log_odds(logits: Tensor) -> Tensor:
    """Log of p / (1 − p) of each class's probability, (b, classes) from logits (b, classes)."""
    itself = torch.eye(logits.shape[1], dtype=torch.bool, device=logits.device)
    others = logits[:, None].masked_fill(itself, -torch.inf)
    return logits - others.logsumexp(2)


class Planted(nn.Module):
    """The planted layer: logits and pictures in, float32 (b, units) out.

    Parameters
    ----------
    mean, std : Tensor
        float32 (classes,): by what the log odds of each class are standardised.
    seed : int
        Chooses the classes of the poly units and the random units' values.

    Notes
    -----
    Half of the random units project the picture's finest detail (the picture minus its 3 × 3
    mean, scaled to unit length) onto random signs; the other half hash its 8-bit pixels to a
    uniform number. Both are sums of whole numbers, exact in float64 and int64, so the order of
    the arithmetic (the batch's shape, the device) changes nothing.
    """

    mean: Tensor
    std: Tensor
    members: Tensor
    signs: Tensor
    weights: Tensor
    units: Tensor

    def __init__(self, mean: Tensor, std: Tensor, seed: int = 0) -> None:
        super().__init__()
        classes = planted_classes(seed)
        concepts = [c for c in classes if c]
        members = torch.tensor([(c * _WIDEST)[:_WIDEST] for c in concepts], dtype=torch.int64)
        random = torch.arange(len(concepts), len(classes))
        projected, hashed = random.chunk(2)
        pixels = torch.arange(3 * SIDE * SIDE)
        key = string_key("demo/planted/pixels")
        draws = uniform(hash_keys(seed, key, projected[:, None]), pixels)
        self.register_buffer("mean", mean.clone())
        self.register_buffer("std", std.clone())
        self.register_buffer("members", members, persistent=False)
        signs = torch.where(draws < 0.5, -1.0, 1.0).double()
        self.register_buffer("signs", signs, persistent=False)
        self.register_buffer("weights", hash_keys(seed, key, pixels) | 1, persistent=False)
        self.register_buffer("units", hashed, persistent=False)

    def forward(self, logits: Tensor, pixels: Tensor) -> Tensor:
        """Planted activations, float32 (b, units).

        Parameters
        ----------
        logits : Tensor
            float32 (b, classes).
        pixels : Tensor
            uint8 values as float32 (b, 3, 64, 64).
        """
        standard = (log_odds(logits) - self.mean) / self.std
        concepts = standard[:, self.members].amax(-1)
        whole = pixels.round().to(torch.float64)
        framed = functional.pad(whole, (1, 1, 1, 1), mode="replicate")
        detail = (9 * whole - functional.avg_pool2d(framed, 3, 1, divisor_override=1)).flatten(1)
        length = detail.square().sum(1, keepdim=True).sqrt().clamp(min=1)
        projected = (detail @ self.signs.T / length).to(torch.float32)
        content = (whole.to(torch.int64).flatten(1) * self.weights).sum(1)
        hashed = uniform(content[:, None], self.units).to(torch.float32)
        return torch.cat((concepts, projected, hashed), 1)
