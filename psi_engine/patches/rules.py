"""How each ATen operation changes what a tensor sees of the image: rows and columns, windows.

One function per kind of operation, from the traces of its inputs to that of one output. What has
no rule raises :class:`UnknownField`; the operations that have one are listed at the end.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

ROWS, COLUMNS, MIXED = 0, 1, 2
"""Image axes of a factor; MIXED is a run of tokens whose place in the image is not regular."""


class Factor(NamedTuple):
    """A part of a tensor's dimension: which image axis it walks along (None: none), its size."""

    axis: int | None
    size: int


class Span(NamedTuple):
    """Unit i along an axis looks at the pixels [low + i · jump, high + i · jump).

    ``whole``: it also sees the rest of the axis, through a global pool or norm beside the way.
    """

    low: float
    high: float
    jump: float
    whole: bool = False


class Trace(NamedTuple):
    """What a tensor sees of the image.

    dims : for each dimension its factors, outermost first; factors of size 1 are left out.
    spans : of rows and columns; None = the whole axis, from no place in particular.
    """

    dims: tuple[tuple[Factor, ...], ...]
    spans: tuple[Span | None, Span | None]


class UnknownField(Exception):
    """An operation without a rule for this input."""


Traces = Mapping[Tensor, Trace]
Rule = Callable[[Traces, tuple[Any, ...], Tensor], Trace]


def rule_of(func: Any) -> Rule:
    """The rule of an ATen operation; raises UnknownField where there is none."""
    name = func.overloadpacket.__name__
    if name in _RULES:
        return _RULES[name]
    if torch.Tag.pointwise in func.tags:
        return _pointwise
    if name.startswith(_ATTENTION):
        return _everywhere
    raise UnknownField


def tensors_in(values: Sequence[Any]) -> list[Tensor]:
    """All tensors among arguments, lists opened up."""
    found: list[Tensor] = []
    for value in values:
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, list | tuple):
            found += tensors_in(value)
    return found


def _plain(shape: Sequence[int]) -> tuple[tuple[Factor, ...], ...]:
    return tuple((Factor(None, size),) if size > 1 else () for size in shape)


def _axes_of(trace: Trace, dims: Sequence[int]) -> set[int]:
    axes = {f.axis for dim in dims for f in trace.dims[dim] if f.axis is not None}
    return {ROWS, COLUMNS} if MIXED in axes else axes


def _mixed_along(trace: Trace, dims: Sequence[int]) -> Trace:
    """The trace after every unit saw all others along some dimensions, and kept its place."""
    axes = _axes_of(trace, dims)
    rows, columns = (
        span._replace(whole=True) if span is not None and axis in axes else span
        for axis, span in enumerate(trace.spans)
    )
    return trace._replace(spans=(rows, columns))


def _summed_along(trace: Trace, dims: Sequence[int]) -> Trace:
    """The trace after some dimensions were reduced to one value: their axes have no place."""
    axes = _axes_of(trace, dims)
    rows, columns = (None if axis in axes else span for axis, span in enumerate(trace.spans))
    return _settled(trace.dims, (rows, columns))


def _settled(dims: Sequence[tuple[Factor, ...]], spans: tuple[Span | None, Span | None]) -> Trace:
    """Factors of an axis without a place are like any other."""
    gone = {axis for axis in (ROWS, COLUMNS) if spans[axis] is None}
    if len(gone) == 2:
        gone.add(MIXED)
    return Trace(
        tuple(tuple(f._replace(axis=None) if f.axis in gone else f for f in dim) for dim in dims),
        spans,
    )


def _union(traces: Sequence[Trace]) -> tuple[Span | None, Span | None]:
    def joined(axis: int) -> Span | None:
        spans = [trace.spans[axis] for trace in traces]
        known = [span for span in spans if span is not None]
        if not known:
            return None
        if len({span.jump for span in known}) > 1:
            raise UnknownField
        whole = len(known) < len(spans) or any(span.whole for span in known)
        return Span(min(s.low for s in known), max(s.high for s in known), known[0].jump, whole)

    return joined(ROWS), joined(COLUMNS)


def _pointwise(traces: Traces, args: tuple[Any, ...], out: Tensor) -> Trace:
    seen = [(x, traces[x]) for x in tensors_in(args) if x in traces]
    shape = out.shape
    spans = _union([trace for _, trace in seen])
    dims = list(_plain(shape))
    for x, trace in seen:
        for back in range(1, x.ndim + 1):
            axes = [f for f in trace.dims[-back] if f.axis is not None]
            if axes and x.shape[-back] == shape[-back]:
                placed = [f for f in dims[-back] if f.axis is not None]
                if placed and placed != axes:
                    raise UnknownField
                dims[-back] = trace.dims[-back]
    return _settled(dims, spans)


def _everywhere(traces: Traces, args: tuple[Any, ...], out: Tensor) -> Trace:
    return Trace(_plain(out.shape), (None, None))


def _view(traces: Traces, args: tuple[Any, ...], out: Tensor) -> Trace:
    """Deal the factors out again, in order. Plain factors may be cut, image axes may not."""
    trace = traces[args[0]]
    rest: list[Factor] = []
    for factor in (f for dim in trace.dims for f in dim):
        if rest and rest[-1].axis is None and factor.axis is None:
            rest[-1] = Factor(None, rest[-1].size * factor.size)
        else:
            rest.append(factor)
    dims = []
    for size in out.shape:
        dim: list[Factor] = []
        while size > 1:
            factor = rest.pop(0)
            taken = factor.size if factor.axis is not None else math.gcd(size, factor.size)
            if taken == 1 or size % taken:
                raise UnknownField
            dim.append(Factor(factor.axis, taken))
            if taken < factor.size:
                rest.insert(0, Factor(None, factor.size // taken))
            size //= taken
        dims.append(tuple(dim))
    return Trace(tuple(dims), trace.spans)


def _permute(traces: Traces, args: tuple[Any, ...], out: Tensor) -> Trace:
    trace, count = traces[args[0]], out.ndim
    order = list(range(count))
    if len(args) == 1:  # t()
        order.reverse()
    elif isinstance(args[1], list | tuple):
        order = [dim % count for dim in args[1]]
    else:
        a, b = args[1] % count, args[2] % count
        order[a], order[b] = order[b], order[a]
    return trace._replace(dims=tuple(trace.dims[dim] for dim in order))


def _slice(traces: Traces, args: tuple[Any, ...], out: Tensor) -> Trace:
    x = args[0]
    trace = traces[x]
    dim = (args[1] if len(args) > 1 else 0) % x.ndim
    if out.shape == x.shape:
        return trace
    if any(f.axis is not None for f in trace.dims[dim]):
        raise UnknownField
    kept = list(trace.dims)
    kept[dim : dim + 1] = _plain(out.shape[dim : dim + 1 + out.ndim - x.ndim])
    return trace._replace(dims=tuple(kept))


def _split(traces: Traces, args: tuple[Any, ...], out: Tensor) -> Trace:
    return _slice(traces, (args[0], *args[2:3]), out)


def _expand(traces: Traces, args: tuple[Any, ...], out: Tensor) -> Trace:
    return _pointwise(traces, args[:1], out)


def _cat(traces: Traces, args: tuple[Any, ...], out: Tensor) -> Trace:
    dim = (args[1] if len(args) > 1 else 0) % out.ndim
    seen = [traces[x] for x in args[0] if x in traces]
    dims = list(seen[0].dims)
    joined = {f.axis for trace in seen for f in trace.dims[dim]} - {None}
    dims[dim] = (Factor(MIXED if joined else None, out.shape[dim]),)
    for trace in seen:
        for i in range(out.ndim):
            if i != dim and trace.dims[i] != dims[i]:
                raise UnknownField
    return _settled(dims, _union(seen))


def _reduce(traces: Traces, args: tuple[Any, ...], out: Tensor) -> Trace:
    x = args[0]
    trace = traces[x]
    named = args[1] if len(args) > 1 and args[1] is not None else range(x.ndim)
    if isinstance(named, Tensor):  # max(a, b)
        raise UnknownField
    reduced = {dim % x.ndim for dim in ([named] if isinstance(named, int) else named)}
    trace = _summed_along(trace, sorted(reduced))
    keep = out.ndim == x.ndim
    dims = [() if i in reduced else dim for i, dim in enumerate(trace.dims)]
    if not keep:
        dims = [dim for i, dim in enumerate(dims) if i not in reduced]
    return Trace(tuple(dims), trace.spans)


def _along(traces: Traces, args: tuple[Any, ...], out: Tensor) -> Trace:
    """Normalise along one dimension (softmax)."""
    return _mixed_along(traces[args[0]], [args[1] % args[0].ndim])


def _layer_norm(traces: Traces, args: tuple[Any, ...], out: Tensor) -> Trace:
    last = len(args[1])
    return _mixed_along(traces[args[0]], range(args[0].ndim - last, args[0].ndim))


def _group_norm(traces: Traces, args: tuple[Any, ...], out: Tensor) -> Trace:
    return _mixed_along(traces[args[0]], range(1, args[0].ndim))


def _batch_norm(traces: Traces, args: tuple[Any, ...], out: Tensor) -> Trace:
    return traces[args[0]]


def _matmul(traces: Traces, args: tuple[Any, ...], out: Tensor) -> Trace:
    """``mm`` and ``bmm``: the last dimension of a against the last but one of b."""
    a, b = args[-2:]
    if a in traces and b in traces:
        # A product of two activations mixes their places, as attention does.
        return _everywhere(traces, args, out)
    x, summed, kept = (a, -1, -2) if a in traces else (b, -2, -1)
    trace = _summed_along(traces[x], [x.ndim + summed])
    dims = list(_plain(out.shape))
    dims[kept] = trace.dims[kept]
    dims[:-2] = trace.dims[:-2]
    return Trace(tuple(dims), trace.spans)


def _linear(traces: Traces, args: tuple[Any, ...], out: Tensor) -> Trace:
    x = args[0]
    if x not in traces or args[1] in traces:
        raise UnknownField
    trace = _summed_along(traces[x], [x.ndim - 1])
    return trace._replace(dims=(*trace.dims[:-1], *_plain(out.shape[-1:])))


def _addmm(traces: Traces, args: tuple[Any, ...], out: Tensor) -> Trace:
    if args[0] in traces:
        raise UnknownField
    return _matmul(traces, args[1:3], out)


def _window(
    trace: Trace, out: Tensor, kernel: Any, stride: Any, padding: Any, dilation: Any
) -> Trace:
    """Slide a window over the last two dimensions."""
    spans: list[Span | None] = []
    for axis in (ROWS, COLUMNS):
        dim, span = trace.dims[axis - 2], trace.spans[axis]
        if span is None:
            spans.append(None)
            continue
        if any(factor.axis != axis for factor in dim):
            raise UnknownField
        k, s, p, d = (_pair(value, axis) for value in (kernel, stride or kernel, padding, dilation))
        low = span.low - p * span.jump
        high = span.high + ((k - 1) * d - p) * span.jump
        spans.append(Span(low, high, span.jump * s, span.whole))
    return _on_grid(trace, out, (spans[0], spans[1]))


def _on_grid(trace: Trace, out: Tensor, spans: tuple[Span | None, Span | None]) -> Trace:
    if any(f.axis is not None for dim in trace.dims[:-2] for f in dim):
        raise UnknownField
    axes = ((Factor(a, n),) if n > 1 else () for a, n in zip((0, 1), out.shape[-2:], strict=True))
    return _settled((*_plain(out.shape[:-2]), *axes), spans)


def _pair(value: Any, axis: int) -> int:
    return value if isinstance(value, int) else value[axis] if len(value) > 1 else value[0]


def _convolution(traces: Traces, args: tuple[Any, ...], out: Tensor) -> Trace:
    x, weight, _, stride, padding, dilation, transposed = args[:7]
    if transposed or x.ndim != 4 or weight in traces:
        raise UnknownField
    return _window(traces[x], out, weight.shape[2:], stride, padding, dilation)


def _max_pool(traces: Traces, args: tuple[Any, ...], out: Tensor) -> Trace:
    # Trailing arguments at their defaults are left out of the call.
    defaults: tuple[Any, ...] = ((), 0, 1)
    x, kernel, stride, padding, dilation, *_ = (*args, *defaults[len(args) - 2 :])
    return _window(traces[x], out, kernel, stride, padding, dilation)


def _avg_pool(traces: Traces, args: tuple[Any, ...], out: Tensor) -> Trace:
    defaults: tuple[Any, ...] = ((), 0)
    x, kernel, stride, padding, *_ = (*args, *defaults[len(args) - 2 :])
    return _window(traces[x], out, kernel, stride, padding, 1)


def _adaptive_pool(traces: Traces, args: tuple[Any, ...], out: Tensor) -> Trace:
    x = args[0]
    trace = traces[x]
    spans: list[Span | None] = []
    for axis in (ROWS, COLUMNS):
        span, n, m = trace.spans[axis], x.shape[axis - 2], out.shape[axis - 2]
        if span is None or m == 1:
            spans.append(span if n == 1 else None)
        elif n % m:
            raise UnknownField
        else:
            reach = (n // m - 1) * span.jump
            spans.append(Span(span.low, span.high + reach, span.jump * (n // m), span.whole))
    return _on_grid(trace, out, (spans[0], spans[1]))


def _pad(traces: Traces, args: tuple[Any, ...], out: Tensor) -> Trace:
    x = args[0]
    trace, dims = traces[x], list(traces[x].dims)
    spans = list(trace.spans)
    for i in range(len(args[1]) // 2):
        dim = x.ndim - 1 - i
        before, after = args[1][2 * i : 2 * i + 2]
        axes = [f.axis for f in dims[dim] if f.axis is not None]
        if not (before or after):
            continue
        if not axes:
            dims[dim] = _plain(out.shape[dim : dim + 1])[0]
        elif len(dims[dim]) > 1 or axes[0] == MIXED:
            raise UnknownField
        else:
            span = spans[axes[0]]
            assert span is not None  # a factor keeps its axis only while it has a span
            shift = before * span.jump
            spans[axes[0]] = span._replace(low=span.low - shift, high=span.high - shift)
            dims[dim] = (Factor(axes[0], out.shape[dim]),)
    return Trace(tuple(dims), (spans[0], spans[1]))


_ATTENTION = ("_scaled_dot_product", "_native_multi_head_attention", "_transformer_encoder_layer")

_RULES: dict[str, Rule] = {
    **dict.fromkeys(
        (
            *("clone", "_to_copy", "detach", "alias", "contiguous", "copy_", "lift_fresh"),
            # Without the pointwise tag in one torch or another (2.11 tags fewer than 2.15):
            *("hardswish", "hardswish_", "hardsigmoid", "hardsigmoid_", "native_dropout"),
            *("elu_", "gelu_", "hardtanh_", "leaky_relu_", "mish_", "threshold_", "_prelu_kernel"),
        ),
        _pointwise,
    ),
    **dict.fromkeys(
        ("view", "_unsafe_view", "reshape", "_reshape_alias", "unsqueeze", "squeeze", "flatten"),
        _view,
    ),
    **dict.fromkeys(("permute", "transpose", "t"), _permute),
    **dict.fromkeys(("slice", "select", "unbind"), _slice),
    **dict.fromkeys(("split", "split_with_sizes", "chunk"), _split),
    "expand": _expand,
    "cat": _cat,
    **dict.fromkeys(("mean", "sum", "amax", "amin", "max"), _reduce),
    **dict.fromkeys(("_softmax", "_log_softmax"), _along),
    "native_layer_norm": _layer_norm,
    "native_group_norm": _group_norm,
    **dict.fromkeys(
        (
            "native_batch_norm",
            "_native_batch_norm_legit_no_training",
            "cudnn_batch_norm",
            "_batch_norm_no_update",
        ),
        _batch_norm,
    ),
    **dict.fromkeys(("mm", "bmm"), _matmul),
    **dict.fromkeys(("addmm", "baddbmm"), _addmm),
    "linear": _linear,
    "convolution": _convolution,
    "max_pool2d_with_indices": _max_pool,
    "avg_pool2d": _avg_pool,
    **dict.fromkeys(("_adaptive_avg_pool2d", "adaptive_max_pool2d"), _adaptive_pool),
    **dict.fromkeys(("constant_pad_nd", "reflection_pad2d", "replication_pad2d"), _pad),
}
