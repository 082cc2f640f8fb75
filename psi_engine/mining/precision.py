"""The arithmetic of a forward pass.

==============  ==================================================================================
``fp32``        IEEE float32, TF32 off, deterministic convolutions
``tf32``        float32 whose products keep 10 bits of mantissa; needs a GPU of compute capability
                8.0 or later
``fp16, bf16``  torch's autocast: weights stay float32, products run in 16 bits, norms and
                softmax in float32; a module's output is widened before it is compared
``exact-fp16``  candidates in fp16, their images again in fp32, see
                :mod:`psi_engine.mining.refine`
==============  ==================================================================================

Autocast rather than a converted module: the model is not copied, modules that must not lose bits
do not, and a model that makes float32 tensors of its own runs. CPUs run 16 bits too, but gain no
time unless they have instructions for them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from psi_engine.config import Precision
from psi_engine.errors import DeviceError

_HALF = {"fp16": torch.float16, "bf16": torch.bfloat16}
_TF32_CAPABILITY = (8, 0)


def candidate_precision(precision: Precision) -> Precision:
    """The arithmetic in which all images are run."""
    return "fp16" if precision == "exact-fp16" else precision


def require_precision(precision: Precision, device: torch.device) -> None:
    """Refuse an arithmetic that the device does not have.

    Raises
    ------
    DeviceError
        TF32 anywhere but on a GPU that has it.
    """
    if precision != "tf32":
        return
    if device.type != "cuda":
        got = f"device {device.type}"
    elif torch.cuda.get_device_capability(device) < _TF32_CAPABILITY:
        got = torch.cuda.get_device_name(device)
    else:
        return
    raise DeviceError(
        "the device has no TF32",
        got=got,
        expected="a GPU of compute capability 8.0 or later",
        fix="give --precision fp32",
    )


@contextmanager
def arithmetic(precision: Precision, device: torch.device) -> Iterator[None]:
    """Run forward passes in ``fp32``, ``tf32``, ``fp16`` or ``bf16`` for the duration.

    Parameters
    ----------
    precision : Precision
        Not ``exact-fp16``, which is two of them.
    device : torch.device
    """
    half = _HALF.get(precision)
    with (
        _products("tf32" if precision == "tf32" else "ieee"),
        torch.autocast(device.type, half, enabled=half is not None),
    ):
        yield


@contextmanager
def exact_fp32() -> Iterator[None]:
    """IEEE float32 and deterministic convolutions for the duration.

    TF32 keeps 48 to 50 of 50 true sites, bfloat16 34 to 47: not exact mining.
    """
    with _products("ieee"):
        yield


@contextmanager
def _products(kind: str) -> Iterator[None]:
    ops: Any = torch.backends
    on_gpu = (ops.cuda.matmul, ops.cudnn.conv, ops.cudnn.rnn)
    places = (*on_gpu, ops.mkldnn.conv, ops.mkldnn.matmul)
    before = [place.fp32_precision for place in places]
    cudnn = ops.cudnn.deterministic, ops.cudnn.benchmark
    try:
        for place in places:
            place.fp32_precision = kind if place in on_gpu else "ieee"
        ops.cudnn.deterministic, ops.cudnn.benchmark = True, False
        yield
    finally:
        for place, value in zip(places, before, strict=True):
            place.fp32_precision = value
        ops.cudnn.deterministic, ops.cudnn.benchmark = cudnn
