"""Layers and channels of a model by name."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from psi_engine.errors import InputError, ModelError
from psi_engine.factories import close_names
from psi_engine.hooks import activation_shape, capture
from psi_engine.types import ActivationShape

_GLOB = re.compile(r"[*?\[]")


def resolve_layers(module: nn.Module, patterns: Sequence[str]) -> list[str]:
    """Names of the layers that names and globs stand for.

    Parameters
    ----------
    module : nn.Module
    patterns : sequence of str
        Module names, globs over them (``layer4.*``; ``*`` also matches dots), or ``all``.

    Returns
    -------
    list of str
        Each once, in the model's order.

    Raises
    ------
    ModelError
        If a name does not exist (close ones are listed) or a glob matches nothing.
    """
    names = [name for name, _ in module.named_modules() if name]
    chosen: set[str] = set()
    for pattern in patterns:
        if pattern in names:
            chosen.add(pattern)
            continue
        glob = _GLOB.search(pattern) is not None
        matches = [n for n in names if glob and fnmatch.fnmatchcase(n, pattern)]
        if pattern == "all":
            matches = names
        if not matches:
            top = [name for name, _ in module.named_children()]
            inner = [name for name in names if name.endswith(f".{pattern}")][:5]
            close = "one of " + ", ".join(inner) if inner else close_names(pattern, names)
            raise ModelError(
                f"no layer matches {pattern!r}" if glob else f"unknown layer {pattern!r}",
                expected=close or "names such as " + ", ".join(top[:12]),
            )
        chosen.update(matches)
    if not chosen:
        raise ModelError("no layers named", expected="names of modules, such as layer4")
    return [name for name in names if name in chosen]


def activation_shapes(
    module: nn.Module, layers: Sequence[str], example_batch: Tensor
) -> dict[str, ActivationShape]:
    """Layout of each layer's output, from one forward pass.

    Parameters
    ----------
    module : nn.Module
    layers : sequence of str
    example_batch : Tensor
        float (batch, 3, S, S) at the real size; the values do not matter.

    Raises
    ------
    ModelError
        If the model fails on it, or a layer does not run or puts out something else than one
        tensor of rank 2 to 4 with the batch first.
    """
    with capture(module, layers) as found:
        batch = forward_once(module, example_batch, found.run)
        outputs = dict(found)
    return {layer: activation_shape(layer, outputs[layer], batch) for layer in layers}


def forward_once(
    module: nn.Module, example_batch: Tensor, run: Callable[[Tensor], object] | None = None
) -> Tensor:
    """Run a model on an example without gradients; return the batch as it went in.

    Parameters
    ----------
    module : nn.Module
    example_batch : Tensor
        Moved to the model's device.
    run : callable, optional
        What to call with the batch instead of the model.

    Raises
    ------
    ModelError
        If the model fails on it.
    """
    anchor = next((t for t in (*module.parameters(), *module.buffers())), example_batch)
    batch = example_batch.to(anchor.device)
    try:
        with torch.no_grad():
            (module if run is None else run)(batch)
    except InputError:
        raise
    except Exception as error:
        # Whatever a model raises on images it was not made for.
        raise ModelError(
            f"the model fails on images of shape {tuple(batch.shape[1:])}",
            got=f"{type(error).__name__}: {error}",
            fix="set the size it was made for with --image-size",
        ) from error
    return batch


def parse_channels(
    specs: Sequence[str], shapes: Mapping[str, ActivationShape]
) -> dict[str, Tensor]:
    """Which channels of which layers.

    Parameters
    ----------
    specs : sequence of str
        ``layer4:0-63``, ``layer4:3,17,40-42``, several joined by commas, ranges inclusive. Specs
        of one layer add up.
    shapes : Mapping of str to ActivationShape
        The layers of the run.

    Returns
    -------
    dict of str to Tensor
        Layer → int64 (n,), ascending; all channels of a layer that no spec names.

    Raises
    ------
    ModelError
        For a layer not in the run, a channel out of range, or a spec of another form.
    """
    chosen: dict[str, set[int]] = {}
    for spec in specs:
        layer: str | None = None
        for part in spec.split(","):
            name, colon, numbers = part.strip().rpartition(":")
            if colon:
                layer = name
                if layer not in shapes:
                    raise ModelError(
                        f"channels of a layer that is not in the run: {layer!r}",
                        expected="one of " + ", ".join(shapes),
                        fix="add it to --layers",
                    )
            match = re.fullmatch(r"(\d+)(?:-(\d+))?", numbers.strip())
            if layer is None or match is None:
                raise ModelError(
                    "bad channels", got=repr(spec), expected="such as layer4:0-63 or layer4:3,17"
                )
            first, last = int(match[1]), int(match[2] or match[1])
            count = shapes[layer].channels
            if last < first or last >= count:
                raise ModelError(
                    f"no such channels in {layer}",
                    got=numbers.strip(),
                    expected=f"0 to {count - 1}, ranges ascending",
                )
            chosen.setdefault(layer, set()).update(range(first, last + 1))
    return {
        layer: torch.tensor(sorted(chosen.get(layer, range(shape.channels))), dtype=torch.int64)
        for layer, shape in shapes.items()
    }
