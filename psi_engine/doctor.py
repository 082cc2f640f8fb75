"""What works on this machine, what does not, and the command that mends it.

Nothing here downloads or opens a model; each check looks, and the whole takes seconds.
"""

from __future__ import annotations

import os
import platform
import shutil
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Literal, TypedDict

import torch

from psi_engine import demo
from psi_engine.data import cached_tiny_imagenet
from psi_engine.models import cached_clip_weights, cached_weights
from psi_engine.network import unreachable_reason
from psi_engine.ops._cuda import (
    ARCHITECTURES,
    KernelReport,
    compile_kernels,
    cupy_reason,
    shared_memory_limit,
)

_PACKAGES = ("torch", "torchvision", "open_clip_torch", "timm", "numba", "pyarrow")
_HOSTS = {
    "torchvision weights": "https://download.pytorch.org",
    "open_clip and timm weights": "https://huggingface.co",
    "Tiny-ImageNet": "http://cs231n.stanford.edu",
}
_PROBE_SECONDS = 2.0
_RUN_BYTES = 2 << 30
_HOPPER_SHARED = 227 << 10


class Check(TypedDict):
    """One line of the report; ``mend`` is empty where nothing is wrong."""

    what: str
    state: Literal["ok", "missing", "broken"]
    detail: str
    mend: str


def examine() -> list[Check]:
    """Examine packages, device, kernels, weights, data, network and disk."""
    return [_packages(), _device(), *_kernels(), _demo(), *_downloads(), *_network(), _disk()]


def _check(
    what: str, problem: str | None, detail: str, mend: str, *, broken: bool = False
) -> Check:
    if problem is None:
        return Check(what=what, state="ok", detail=detail, mend="")
    return Check(what=what, state="broken" if broken else "missing", detail=problem, mend=mend)


def _packages() -> Check:
    held = [f"Python {platform.python_version()}"]
    absent = []
    for name in _PACKAGES:
        try:
            held.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            absent.append(name)
    problem = f"not installed: {', '.join(absent)}" if absent else None
    return _check("packages", problem, ", ".join(held), "pip install psi-engine", broken=True)


def _device() -> Check:
    processors = f"CPU, {torch.get_num_threads()} threads of {os.cpu_count()}"
    if torch.cuda.is_available():
        return _check("device", None, f"{torch.cuda.get_device_name()}; {processors}", "")
    built = torch.version.cuda
    return _check(
        "GPU",
        f"none that torch can use (torch for CUDA {built}); everything runs on the {processors}",
        "",
        "needs an NVIDIA card and driver; without one nothing has to be done"
        if built
        else "install a CUDA build of torch",
    )


def _kernels() -> list[Check]:
    reason = cupy_reason()
    checks = [
        _check(
            "CuPy",
            reason,
            "usable",
            "pip install '.[cuda13]' in the project's folder ('.[cuda12]' for a CUDA 12 driver)"
            if torch.cuda.is_available()
            else "needs the GPU first; torch and numba do its work meanwhile",
        )
    ]
    launched = _launched()
    for report in _compiled(_architecture()):
        detail = f"compiles for {report.arch}: {report.registers} registers, "
        detail += f"{report.shared_bytes} B static shared memory, {report.spill_bytes} B spilled"
        if not report.variant and report.name in launched:
            detail += f"; {launched[report.name]} B shared a block at the paper's sizes"
        checks.append(
            _check(
                f"kernel {report.name} {report.variant}".rstrip(),
                report.error,
                detail,
                "pip install '.[cuda13]' in the project's folder brings the compiler",
            )
        )
    return checks


def _launched() -> dict[str, int]:
    """Dynamic shared memory of a block at 50 patches, k = 2..5, 300 texts, maps of 14 × 14."""
    from psi_engine.ops import _cuda_separability, contingency, naming, silhouette, survey

    cuda = torch.cuda.is_available() and cupy_reason() is None
    limit = shared_memory_limit(torch.device("cuda")) if cuda else _HOPPER_SHARED
    batch = torch.empty(128, 14 * 14, 1024, device="meta").mT  # channels last
    plans = {
        "contingency": contingency.plan(50, 50, limit),
        "naming": naming.plan(3072, 5, 5, 300, limit),
        "separability": _cuda_separability.plan(50, limit, starts=5),
        "survey": survey.plan(batch, 50, True, processors=132),
    }
    found = {name: how.shared_bytes for name, how in plans.items() if how is not None}
    found["reservoir"] = 0
    return found | {"silhouette": silhouette.shared_bytes(50, 5, 4, tiled=True)}


@cache
def _compiled(architecture: str) -> list[KernelReport]:
    """Seconds of work whose result does not change."""
    return compile_kernels([architecture])


def _architecture() -> str:
    """What kernels are compiled for: the device that is here, else the newest we know."""
    if not torch.cuda.is_available():
        return ARCHITECTURES[-1]
    major, minor = torch.cuda.get_device_capability()
    return f"sm_{major}{minor}"


def _demo() -> Check:
    path = demo.images_path()
    problem = None if path.is_file() else f"{path} is gone"
    return _check(
        "demo", problem, "images and weights are here: psi-engine demo", "reinstall psi-engine",
        broken=True,
    )  # fmt: skip


def _downloads() -> list[Check]:
    """What the default run needs from the network, and whether it is here already."""
    held: tuple[tuple[str, Path | None, str], ...] = (
        ("weights of resnet50", cached_weights("resnet50"), "--weights FILE"),
        ("open_clip ViT-B-32, openai", cached_clip_weights("ViT-B-32"), "--encoder-weights FILE"),
        ("Tiny-ImageNet", cached_tiny_imagenet(), "--data PATH"),
    )
    return [
        _check(
            what,
            None if path else "not downloaded yet",
            str(path),
            f"with a network the first run downloads it; without, give {option}",
        )
        for what, path, option in held
    ]


def _network() -> list[Check]:
    return [
        _check(
            f"network for {what}",
            unreachable_reason(url, _PROBE_SECONDS),
            url,
            "fetch the files elsewhere and give them by path, as the lines above say",
        )
        for what, url in _HOSTS.items()
    ]


def _disk() -> Check:
    free = shutil.disk_usage(Path.cwd()).free
    problem = f"{free / 2**30:.1f} GiB free here" if free < _RUN_BYTES else None
    return _check(
        "disk", problem, f"{free / 2**30:.0f} GiB free here", "give --out on a disk with 2 GiB free"
    )
