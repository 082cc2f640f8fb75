"""Where a unit of a layer looks: theoretical, effective, or a side the user chose."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call

from psi_engine.errors import InputError
from psi_engine.hooks import as_maps, capture, evaluating
from psi_engine.models import latent_source
from psi_engine.ops.random import hash_keys, string_key, uniform
from psi_engine.patches.graph import executed_trace
from psi_engine.patches.rules import COLUMNS, ROWS, Span, Trace
from psi_engine.types import ActivationShape, ReceptiveField

_SUPPORT_PROBES = 4  # inputs whose gradient supports are united: a max pool passes one pixel each
_RANDOM_PERIOD = 100_003
_EFFECTIVE_BATCH = 4  # images differentiated together; their gradients do not mix
_MOST_PREFIX = 16  # class, distillation and register tokens before a grid of patches


def receptive_field(
    module: nn.Module,
    layer: str,
    image_size: int,
    kind: Literal["theoretical", "effective"] | int = "effective",
    *,
    shape: ActivationShape,
    images: Tensor | None = None,
    energy: float = 0.95,
) -> ReceptiveField:
    """Find the window of the input that the units of a layer look at.

    Parameters
    ----------
    module : nn.Module
        Run in eval mode; its modes are put back.
    layer : str
        Name of a submodule.
    image_size : int
        Side S of the model's input.
    kind : {"theoretical", "effective"} or int
        ``theoretical``: every pixel that can matter, by the recursion over the graph that runs;
        wider than the image in deep layers. ``effective``: the centred square that holds a share
        of the gradient's energy. An int: the side in pixels.
    shape : ActivationShape
        Layout of the layer's output at this image size.
    images : Tensor, float32 (n, channels, S, S), optional
        Normalised probe images; needed for ``effective``.
    energy : float
        Share of the energy inside the effective field, between 0 and 1.

    Returns
    -------
    ReceptiveField
        ``source`` tells how it was found. Flat outputs, class tokens and tokens that are not a
        grid of patches look at the whole image, whatever is asked for.

    Raises
    ------
    InputError
        An unknown kind, a side below 1, or ``effective`` without images of the right shape.

    Notes
    -----
    *Theoretical.* Where the graph holds an operation without a rule, the support of the central
    unit's gradient is measured instead, on the network with positive random weights, where
    contributions do not cancel; ``source`` is then ``gradient``.

    *Effective* (Luo et al. 2016, arXiv 1701.04128, section 3). The squared gradient of the
    central unit with respect to the input, summed over the layer's channels and the input's
    colours, averaged over images. The sum over channels is estimated without bias by one
    backward pass per image, of a sum of the channels with random signs. The side is that of the
    smallest window centred on the unit that holds ``energy`` of it, at most S. Where no channel
    responds on any image there is nothing to measure and the theoretical field is returned.

    *Tokens* are a grid of patches where the model has a patch embedding (a convolution whose
    stride is its kernel) and the layer has as many tokens as that has patches, after at most
    16 prefix tokens.

    *Latents* (:func:`psi_engine.models.attach_latents`) look where their layer looks.
    """
    _check(kind, image_size, images, energy)
    source = latent_source(module, layer)
    if source is not None:
        layer, shape = source
    if shape.kind == "flat":
        return _whole(image_size)
    device = _device_of(module)
    if images is None:
        probe = torch.zeros(1, _input_channels(module), image_size, image_size)
    else:
        probe = images[:1].to(torch.float32)
    with evaluating(module):
        trace, output = executed_trace(module, layer, probe.to(device))
        spans = _placed(trace, shape, tuple(output.shape[1:]))
        tokens = _token_grid(module, trace, spans, shape, image_size)
        if shape.kind == "tokens" and tokens is None:
            return _whole(image_size)
        field = _centres(spans, shape, tokens, image_size)
        if isinstance(kind, int):
            return field._replace(size=(float(kind), float(kind)), source="pixels")
        if kind == "effective" and images is not None:
            side = _effective_side(module, layer, images.to(device), shape, field, energy)
            if side is not None:
                return field._replace(size=(side, side), source="effective")
        if spans is None:
            return _supported(module, layer, probe, shape, field)
    height, width = (
        float(image_size) if span is None or span.whole else span.high - span.low for span in spans
    )
    return field._replace(size=(height, width))


def _check(kind: object, image_size: int, images: Tensor | None, energy: float) -> None:
    pixels = isinstance(kind, int) and not isinstance(kind, bool) and kind >= 1
    if kind not in ("theoretical", "effective") and not pixels:
        raise InputError(
            "unknown receptive field",
            got=repr(kind),
            expected="'theoretical', 'effective' or a side of at least 1 pixel",
        )
    if not 0 < energy < 1:
        raise InputError("energy is out of range", got=energy, expected="between 0 and 1")
    if kind == "effective" and images is None:
        raise InputError(
            "an effective receptive field needs images to measure it on",
            fix="pass images=…, a normalised batch, or ask for 'theoretical' or a side in pixels",
        )
    if images is not None and (
        images.ndim != 4 or not len(images) or images.shape[2:] != (image_size, image_size)
    ):
        raise InputError(
            "probe images do not fit",
            got=tuple(images.shape),
            expected=f"(n, channels, {image_size}, {image_size}), n at least 1",
        )


def _whole(image_size: int) -> ReceptiveField:
    side, middle = float(image_size), image_size / 2
    return ReceptiveField((side, side), (0.0, 0.0), (middle, middle), "image")


def _device_of(module: nn.Module) -> torch.device:
    return next((x.device for x in (*module.parameters(), *module.buffers())), torch.device("cpu"))


def _input_channels(module: nn.Module) -> int:
    """Input channels of the first convolution; 3 where there is none."""
    for part in module.modules():
        if isinstance(part, nn.Conv2d):
            return part.in_channels
    return 3


def _placed(
    trace: Trace | None, shape: ActivationShape, layout: tuple[int, ...]
) -> tuple[Span | None, Span | None] | None:
    """The spans of a layer's output, or None where the trace does not tell them for every site."""
    if trace is None:
        return None
    if all(span is None or span.whole for span in trace.spans):
        return trace.spans
    axes = [tuple(f.axis for f in dim if f.axis is not None) for dim in trace.dims]
    if shape.kind == "tokens":
        return trace.spans if axes == [(), (ROWS, COLUMNS), ()] else None
    first = 2 if layout == (shape.channels, *shape.grid) else 1
    expected: list[tuple[int, ...]] = [(), (), (), ()]
    for axis in (ROWS, COLUMNS):
        # An axis of one unit leaves no factor behind, and neither does one without a place.
        if shape.grid[axis] > 1 and trace.spans[axis] is not None:
            expected[first + axis] = (axis,)
    return trace.spans if axes == expected else None


def _token_grid(
    module: nn.Module,
    trace: Trace | None,
    spans: tuple[Span | None, Span | None] | None,
    shape: ActivationShape,
    image_size: int,
) -> tuple[int, int] | None:
    """(prefix tokens, columns) of a layer of tokens, None where they are not a grid."""
    if shape.kind != "tokens":
        return None
    if trace is not None and spans is not None:
        factors = [f for f in trace.dims[1] if f.axis is not None]
        if [f.axis for f in factors] == [ROWS, COLUMNS]:
            return 0, factors[1].size
    for part in module.modules():
        if isinstance(part, nn.Conv2d) and part.kernel_size == part.stride != (1, 1):
            rows, columns = (image_size // side for side in part.kernel_size)
            prefix = shape.grid[0] - rows * columns
            if 0 <= prefix <= _MOST_PREFIX:
                return prefix, columns
    return None


def _centres(
    spans: tuple[Span | None, Span | None] | None,
    shape: ActivationShape,
    tokens: tuple[int, int] | None,
    image_size: int,
) -> ReceptiveField:
    """Where the units sit; an axis that the graph does not tell is divided evenly."""
    grid = shape.grid if tokens is None else ((shape.grid[0] - tokens[0]) // tokens[1], tokens[1])
    jump, start = [], []
    for axis in (ROWS, COLUMNS):
        span = None if spans is None else spans[axis]
        even = image_size / grid[axis]
        jump.append(even if span is None else span.jump)
        start.append(even / 2 if span is None else (span.low + span.high) / 2)
    side = float(image_size)
    return ReceptiveField((side, side), (jump[0], jump[1]), (start[0], start[1]), "graph", tokens)


def _central_site(shape: ActivationShape, field: ReceptiveField) -> tuple[int, int, float, float]:
    """(u, v) of the central unit and the row and column of its centre, in pixels."""
    if field.tokens is None:
        u, v = shape.grid[0] // 2, shape.grid[1] // 2
        row, column = u, v
    else:
        prefix, columns = field.tokens
        row, column = (shape.grid[0] - prefix) // columns // 2, columns // 2
        u, v = prefix + row * columns + column, 0
    y = field.start[0] + row * field.jump[0]
    x = field.start[1] + column * field.jump[1]
    return u, v, y, x


def _effective_side(
    module: nn.Module,
    layer: str,
    images: Tensor,
    shape: ActivationShape,
    field: ReceptiveField,
    energy: float,
) -> float | None:
    u, v, y, x = _central_site(shape, field)
    side = images.shape[2]
    total = torch.zeros(side, side, dtype=torch.float64, device=images.device)
    channels = torch.arange(shape.channels, device=images.device)
    numbers = torch.arange(len(images), device=images.device)
    signs = hash_keys(string_key(layer), numbers[:, None], channels).sign().to(torch.float32)
    for batch, sign in zip(
        images.split(_EFFECTIVE_BATCH), signs.split(_EFFECTIVE_BATCH), strict=True
    ):
        pixels = batch.to(torch.float32).detach().requires_grad_()
        with torch.enable_grad(), capture(module, [layer]) as outputs:
            outputs.run(pixels)
            units = as_maps(outputs[layer], shape)[:, :, u, v]
            (gradient,) = torch.autograd.grad((units * sign).sum(), pixels)
        total += gradient.double().square().sum((0, 1))
    if not bool(total.sum() > 0):
        return None
    pixel = torch.arange(side, dtype=torch.float64, device=total.device) + 0.5
    distance = torch.maximum((pixel - y).abs()[:, None], (pixel - x).abs()[None, :]).flatten()
    distance, order = torch.sort(distance, stable=True)
    inside = total.flatten()[order].cumsum(0)
    reached = torch.searchsorted(inside, energy * inside[-1]).clamp_max(len(inside) - 1)
    # A pixel whose centre is d away lies wholly inside a window of side 2·d + 1.
    return float(min(side, math.ceil(2 * float(distance[reached]) + 1 - 1e-9)))


def _supported(
    module: nn.Module,
    layer: str,
    probe: Tensor,
    shape: ActivationShape,
    field: ReceptiveField,
) -> ReceptiveField:
    """The support of the central unit's gradient with all weights positive.

    At a border the image cuts the support off, so the farther side counts on both.
    """
    u, v, y, x = _central_site(shape, field)
    device = _device_of(module)
    weights = {name: _positive(name, p) for name, p in module.named_parameters()}
    touched = torch.zeros(probe.shape[2:], dtype=torch.bool, device=device)
    for number in range(_SUPPORT_PROBES):
        where = torch.arange(probe.numel(), device=device)
        noise = uniform(string_key(layer), number, where).to(torch.float32)
        pixels = noise.view(probe.shape).requires_grad_()
        with torch.enable_grad(), capture(module, [layer]) as outputs:
            functional_call(module, weights, (pixels,))
            unit = as_maps(outputs[layer], shape)[0, :, u, v]
            (gradient,) = torch.autograd.grad(unit.sum(), pixels)
        touched |= (gradient[0] != 0).any(0)
    if not bool(touched.any()):
        return field._replace(source="gradient")
    sides = []
    for axis, centre in ((ROWS, y), (COLUMNS, x)):
        line = touched.any(1 - axis).nonzero()
        low, high = float(line.min()), float(line.max()) + 1
        sides.append(min(2 * max(centre - low, high - centre), float(probe.shape[2])))
    return field._replace(size=(sides[0], sides[1]), source="gradient")


def _positive(name: str, weight: Tensor) -> Tensor:
    """Positive random weights that average their inputs, so that nothing saturates or cancels."""
    count = weight.numel()
    # Hashing tens of millions of weights takes longer than all else; a prime period repeats no
    # row of any layer.
    where = torch.arange(min(count, _RANDOM_PERIOD), device=weight.device)
    random = (uniform(string_key(name), where) + 0.5).to(weight.dtype)
    random = random.repeat(-(-count // max(1, len(where))))[:count].view(weight.shape)
    return random / max(1, weight[0].numel()) if weight.ndim > 1 else random
