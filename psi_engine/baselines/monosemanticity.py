"""The monosemanticity score MS, over some patches or over a whole data set.

References
----------
Pach, Karthik, Bouniot, Belongie, Akata, "Sparse autoencoders learn monosemantic features in
vision-language models", NeurIPS, 2025 (arXiv:2504.02821), the weighted mean over pairs. First
versions of the paper divided by the number of pairs, its code by the sum of the weights; the
authors corrected the paper to the latter (their repository's issue 4), which is what stands here.
The sum over pairs in one pass is also in Nasiri-Sarvi et al., "MonoLoss", 2026
(arXiv:2602.12403).
"""

from __future__ import annotations

import torch
from torch import Tensor

from psi_engine.baselines.rows import units
from psi_engine.errors import InputError
from psi_engine.ops.exact import GRID, fold_sum, unit_rows

_IMAGES = 32
# Products of two multiples of 2⁻²⁴ up to 1: so many add exactly in float64.
_NUMBERS = 1 << 21


def monosemanticity(embeddings: Tensor, activations: Tensor) -> Tensor:
    """Activation-weighted mean cosine over all pairs of patches (MS).

    Parameters
    ----------
    embeddings : Tensor, floating (channels, patches, dim)
    activations : Tensor, floating (channels, patches)
        Weights ã ≥ 0: activations scaled to [0, 1] by the channel's range over the data; NaN
        leaves the patch out. The score is over these patches alone; for the published score,
        over every image, see :class:`MonosemanticitySums`.

    Returns
    -------
    Tensor
        float64 (channels,), in [−1, 1]. NaN where fewer than two weights are positive.

    Raises
    ------
    InputError
        Weights of another shape than the patches, or negative.

    Notes
    -----
    Σ_{i<j} ã_i ã_j cos(e_i, e_j)/Σ_{i<j} ã_i ã_j in O(patches): with W = Σ ã_i ê_i it is
    (‖W‖² − Σã²)/((Σã)² − Σã²).
    """
    if activations.shape != embeddings.shape[:2]:
        raise InputError(
            "activations do not fit the embeddings",
            got=tuple(activations.shape),
            expected=tuple(embeddings.shape[:2]),
        )
    weight = activations.to(torch.float64)
    weight = torch.where(torch.isnan(weight), 0.0, weight)
    if bool((weight < 0).any()):
        raise InputError(
            "activations are negative",
            got=float(weight.min()),
            expected="weights in [0, 1]",
            fix="scale them by the channel's minimum and maximum",
        )
    rows, usable = units(embeddings)
    whole = fold_sum((rows * weight[..., None]).mT)
    value = _over_pairs(whole, fold_sum(weight), fold_sum(weight * weight))
    return torch.where(usable, value, torch.nan)


class MonosemanticitySums:
    """MS of every channel over a whole data set, image by image, exactly and in any order.

    W = Σ ã_i ê_i, Σ ã_i and Σ ã_i² stand as integers: unit embeddings ê and scaled activations ã
    are multiples of 2⁻²⁴, so batches, their order, shards and the device change no bit.
    2·8·channels·dim bytes are held.

    Parameters
    ----------
    minimum, maximum : Tensor, floating (channels,)
        The range of each channel's activations over the data set (a first pass, or the
        statistics that mining keeps). A channel with an empty or NaN range has no score.
    dim : int
        Of the embeddings.

    Raises
    ------
    InputError
        Ranges of different shapes.

    Notes
    -----
    ã is rounded to 2⁻²⁴ of the range: activations that far below the largest count as none.
    """

    def __init__(self, minimum: Tensor, maximum: Tensor, dim: int) -> None:
        if minimum.ndim != 1 or minimum.shape != maximum.shape:
            raise InputError(
                "the ranges of the activations do not fit each other",
                got=f"{tuple(minimum.shape)} and {tuple(maximum.shape)}",
                expected="one minimum and one maximum for each channel",
            )
        self.minimum = minimum.to(torch.float64)
        self.maximum = maximum.to(torch.float64)
        channels = len(minimum)

        def zeros(*shape: int) -> Tensor:
            return torch.zeros(*shape, dtype=torch.int64, device=minimum.device)

        # In multiples of 2⁻²⁴ and of 2⁻⁴⁸.
        self._whole = zeros(2, channels, dim)
        self._square = zeros(2, channels)
        self._total = zeros(channels)

    def add(self, embeddings: Tensor, activations: Tensor) -> None:
        """Add a batch of images.

        Parameters
        ----------
        embeddings : Tensor, floating (images, dim)
            A row that is zero or not finite leaves its image out.
        activations : Tensor, floating (images, channels)
            One number for each image and channel, such as the maximum over the image. Those not
            finite leave the image out for that channel.

        Raises
        ------
        InputError
            The shapes do not fit, or an activation lies outside the channel's range.
        """
        channels, dim = self._whole.shape[1:]
        if embeddings.shape != (len(embeddings), dim) or activations.shape != (
            len(embeddings),
            channels,
        ):
            raise InputError(
                "embeddings and activations do not fit",
                got=f"{tuple(embeddings.shape)} and {tuple(activations.shape)}",
                expected=f"(images, {dim}) and (images, {channels})",
            )
        finite = torch.isfinite(activations)
        outside = finite & ((activations < self.minimum) | (activations > self.maximum))
        if bool(outside.any()):
            _, channel = torch.nonzero(outside)[0].tolist()
            raise InputError(
                f"an activation of channel {channel} lies outside its range",
                got=float(activations[:, channel][outside[:, channel]][0]),
                expected=f"{float(self.minimum[channel]):g} to {float(self.maximum[channel]):g}",
                fix="give the minimum and maximum over the same images",
            )
        unit = unit_rows(embeddings)
        for start in range(0, len(embeddings), _IMAGES):
            part = slice(start, start + _IMAGES)
            usable = finite[part] & unit.nonzero[part, None]
            self._add(unit.rows[part].to(torch.float64), activations[part], usable)

    def _add(self, rows: Tensor, activations: Tensor, usable: Tensor) -> None:
        span = self.maximum - self.minimum
        scaled = (activations.to(torch.float64) - self.minimum) / torch.where(span > 0, span, 1.0)
        weight = torch.where(usable & (span > 0), (scaled / GRID).round() * GRID, 0.0)
        self._total += (weight.sum(0) / GRID).to(torch.int64)
        _carry(self._square, (weight * weight).sum(0))
        for some in torch.arange(len(span)).split(max(1, _NUMBERS // rows.shape[1])):
            own = slice(int(some[0]), int(some[-1]) + 1)
            _carry(self._whole[:, own], weight[:, own].mT @ rows)

    def merge(self, other: MonosemanticitySums) -> None:
        """Add the sums of other images, of a shard for example.

        Raises
        ------
        InputError
            They stand for other ranges or another dimension: their weights are not comparable.
        """
        if self._whole.shape != other._whole.shape or not (
            torch.equal(self.minimum.nan_to_num(), other.minimum.nan_to_num())
            and torch.equal(self.maximum.nan_to_num(), other.maximum.nan_to_num())
        ):
            raise InputError(
                "the sums stand for different channels or ranges",
                fix="give every shard the minimum and maximum over the whole data set",
            )
        self._whole += other._whole
        self._square += other._square
        self._total += other._total

    def score(self) -> Tensor:
        """MS so far, float64 (channels,), in [−1, 1]; NaN below two images with weight."""
        total = self._total.to(torch.float64) * GRID
        return _over_pairs(_value(self._whole), total, _value(self._square))


def _carry(sums: Tensor, exact: Tensor) -> None:
    """Add multiples of 2⁻⁴⁸, float64, to integers of 2⁻²⁴ and 2⁻⁴⁸."""
    large = (exact / GRID).floor()
    sums[0] += large.to(torch.int64)
    sums[1] += ((exact / GRID - large) / GRID).to(torch.int64)


def _value(sums: Tensor) -> Tensor:
    return sums[0].to(torch.float64) * GRID + sums[1].to(torch.float64) * GRID**2


def _over_pairs(whole: Tensor, total: Tensor, square: Tensor) -> Tensor:
    pairs = total**2 - square
    value = (fold_sum(whole * whole) - square) / torch.where(pairs > 0, pairs, 1.0)
    return torch.where(pairs > 0, value, torch.nan)
