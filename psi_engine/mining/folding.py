"""Batch norms folded into the convolutions before them, for GPUs, where each is a pass over memory.

In evaluation mode a batch norm is one multiplication and one addition per channel, which the
convolution before it can do by other weights. The activations then differ in their last bits, so
CPUs, whose bits are what runs are compared by, never fold.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from psi_engine.hooks import capture

NETWORK_FORM = {"cpu": "cpu", "cuda": "cuda, batch norms folded"}
"""How a model runs, by device type: part of the key of what is mined."""

TOLERANCE = 1e-4
"""Largest difference of a wanted layer's outputs, as a share of its largest activation."""


def folded(module: nn.Module, wanted: Sequence[str], batch: Tensor) -> tuple[nn.Module, list[str]]:
    """A copy of a model with batch norms folded, its convolutions' weights in channels-last.

    Parameters
    ----------
    module : nn.Module
        In evaluation mode, on the device of ``batch``. Not changed; the copy shares all tensors
        but the convolutions' weights.
    wanted : sequence of str
        Layers whose outputs must stay what they are.
    batch : Tensor
        Input of the model, on which the copy is tried and compared.

    Returns
    -------
    tuple of nn.Module and list of str
        The copy and what was folded; the model itself and the reason if it cannot be copied or
        the copy's outputs differ by more than :data:`TOLERANCE`. No notes for a model without
        batch norms.

    Notes
    -----
    A batch norm is folded if in a pass over ``batch`` its input is the very output of a
    convolution, which no other operation reads, and both are plain float32 2-D modules that run
    once, bear one name, have no hooks and are not wanted; nor may a wanted module that holds the
    convolution put out that output.
    """
    if not any(isinstance(part, nn.Conv2d) for part in module.modules()):
        return module, []
    with torch.no_grad():
        with capture(module, wanted) as outputs:
            expected = dict(outputs.run(batch))
        try:
            network, notes = _fold(module, wanted, batch)
            with capture(network, wanted) as outputs:
                apart = _difference(expected, outputs.run(batch))
        # A model of the user's may raise anything when it is copied or finds its parts changed.
        except Exception as error:
            return module, [f"batch norms are not folded: {type(error).__name__}: {error}"]
    if apart is not None:
        return module, [f"batch norms are not folded: {apart}"]
    return network, notes


def _fold(module: nn.Module, wanted: Sequence[str], batch: Tensor) -> tuple[nn.Module, list[str]]:
    shared = [*module.parameters(), *module.buffers()]
    network: nn.Module = copy.deepcopy(module, {id(tensor): tensor for tensor in shared})
    names = {part: name for name, part in network.named_modules()}
    norms = [part for part in names if isinstance(part, _BatchNorm)]
    barred = _barred(network, wanted)
    trace = _Trace(network, [network.get_submodule(name) for name in wanted])
    if norms:
        trace.run(batch)
    left: Counter[str] = Counter()
    for norm in norms:
        conv = trace.source(norm)
        if conv is None:
            left["not fed by a convolution alone"] += 1
        elif reason := barred.get(norm) or barred.get(conv):
            left[reason] += 1
        else:
            _replace(network, names[conv], fuse_conv_bn_eval(conv, norm))
            _replace(network, names[norm], nn.Identity().eval())
    for part in network.modules():
        weight = part._parameters.get("weight") if isinstance(part, nn.Conv2d) else None
        if weight is not None:
            part.weight = nn.Parameter(
                weight.contiguous(memory_format=torch.channels_last), requires_grad=False
            )
    if not norms:
        return network, []
    why = "; ".join(f"{count} {reason}" for reason, count in sorted(left.items()))
    done = f"{len(norms) - left.total()} of {len(norms)} batch norms are folded into convolutions"
    return network, [f"{done} (left alone: {why})" if why else done]


def _barred(network: nn.Module, wanted: Sequence[str]) -> dict[nn.Module, str]:
    """Modules that must stay as they are, and why."""
    known = Counter(part for _, part in network.named_modules(remove_duplicate=False))
    layers = {network.get_submodule(name) for name in wanted}
    barred = {}
    for part, count in known.items():
        if part in layers:
            barred[part] = "wanted as layers"
        elif part._forward_hooks or part._forward_pre_hooks:
            barred[part] = "with hooks"
        elif count > 1:
            barred[part] = "shared"
        elif isinstance(part, nn.Conv2d | _BatchNorm) and not _plain(part):
            barred[part] = "of another kind"
    return barred


def _plain(part: nn.Conv2d | _BatchNorm) -> bool:
    """Whether a module is what its class says: subclasses may do more, or pad otherwise."""
    tensors = [*part.parameters(), *part.buffers()]
    floats = all(x.dtype == torch.float32 for x in tensors if x.is_floating_point())
    if isinstance(part, nn.Conv2d):
        return type(part) is nn.Conv2d and floats
    kept = part.running_mean is not None and part.running_var is not None
    return type(part) is nn.BatchNorm2d and floats and kept and not part.training


class _Trace(TorchDispatchMode):
    """Watches a pass: which convolution feeds each batch norm, and who else reads its output."""

    def __init__(self, network: nn.Module, layers: Sequence[nn.Module]) -> None:
        super().__init__()
        self._network = network
        self._layers = layers
        self._runs: Counter[nn.Module] = Counter()
        self._made: dict[int, tuple[nn.Conv2d, Tensor]] = {}  # held, so that ids stay theirs
        self._inputs: dict[nn.Module, Tensor] = {}
        self._inside: Tensor | None = None  # input of the batch norm that is running
        self._read: set[int] = set()

    def run(self, batch: Tensor) -> None:
        """Run the network once, and leave it as it was."""
        handles = []
        for part in self._network.modules():
            if isinstance(part, nn.Conv2d):
                handles.append(part.register_forward_hook(self._leave_conv))
            elif isinstance(part, _BatchNorm):
                handles.append(part.register_forward_pre_hook(self._enter_norm))
                handles.append(part.register_forward_hook(self._leave_norm))
        handles += [
            layer.register_forward_hook(self._leave_layer)
            for layer in self._layers
            if not isinstance(layer, nn.Conv2d | _BatchNorm)
        ]
        try:
            with self:
                self._network(batch)
        finally:
            for handle in handles:
                handle.remove()

    def source(self, norm: nn.Module) -> nn.Conv2d | None:
        """The convolution whose output a batch norm alone reads, both having run once."""
        x = self._inputs.get(norm)
        conv = None if x is None else self._made.get(id(x), (None,))[0]
        if conv is None or id(x) in self._read:
            return None
        return conv if self._runs[conv] == self._runs[norm] == 1 else None

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        for x in tree_leaves((args, kwargs)):
            if isinstance(x, Tensor) and id(x) in self._made and x is not self._inside:
                self._read.add(id(x))
        return func(*args, **(kwargs or {}))

    def _leave_conv(self, conv: nn.Conv2d, _: Any, output: Tensor) -> None:
        self._runs[conv] += 1
        self._made[id(output)] = conv, output

    def _enter_norm(self, norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self._runs[norm] += 1
        if inputs:
            x = inputs[0]
            if any(x is other for other in self._inputs.values()):
                self._read.add(id(x))  # two batch norms of one convolution
            self._inputs[norm] = self._inside = x

    def _leave_norm(self, *_: Any) -> None:
        self._inside = None

    def _leave_layer(self, _: nn.Module, __: Any, output: Any) -> None:
        if id(output) in self._made:
            self._read.add(id(output))


def _replace(network: nn.Module, name: str, part: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(network.get_submodule(parent), child, part)


def _difference(expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> str | None:
    """Say where outputs differ by more than the tolerance; None where they agree."""
    for name, one in expected.items():
        other = found[name]
        finite = torch.isfinite(one)
        if one.shape != other.shape or not torch.equal(finite, torch.isfinite(other)):
            return f"{name} would differ in shape or in what is not finite"
        if not finite.any():
            continue
        apart = float((one[finite] - other[finite]).abs().max())
        largest = float(one[finite].abs().max())
        if apart > TOLERANCE * largest:
            return f"{name} would differ by {apart:.1e}, its largest activation being {largest:.1e}"
    return None
