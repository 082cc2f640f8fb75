"""What the bits of a forward pass depend on beside its inputs: software, device, threads.

Work that stopped is continued only where this is the same; finished work stands, whatever made it.
"""

from __future__ import annotations

import contextlib
import platform
from collections.abc import Mapping
from importlib import metadata

import torch

_RECORDED = (
    "torch", "torchvision", "open_clip_torch", "timm", "pillow", "numpy", "numba", "pyarrow",
)  # fmt: skip
_SOFTWARE = ("psi_engine", "torch", "torchvision", "timm", "open_clip_torch", "pillow")


def versions() -> dict[str, str]:
    """Versions of psi-engine, Python and the libraries that can change a number."""
    from psi_engine import __version__

    found = {"psi_engine": __version__, "python": platform.python_version()}
    for name in _RECORDED:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    found["torch"] = torch.__version__  # with the build's tag, which the metadata leave out
    return found


def made_here(device: torch.device) -> dict[str, str]:
    """What would make rows or activations here and now, by name."""
    installed = versions()
    found = {name: installed[name] for name in _SOFTWARE if name in installed}
    if device.type == "cuda":
        return found | {"device": torch.cuda.get_device_name(device)}
    instructions = torch.backends.cpu.get_cpu_capability()
    return found | {"device": f"CPU {instructions}", "threads": str(torch.get_num_threads())}


def differences(made: Mapping[str, str], now: Mapping[str, str]) -> str:
    """Say in what two makers differ, such as ``threads 4; now threads 2``."""
    names = [name for name in {**made, **now} if made.get(name) != now.get(name)]

    def said(maker: Mapping[str, str]) -> str:
        return ", ".join(f"{name} {maker.get(name, 'absent')}" for name in names)

    return f"{said(made)}; now {said(now)}"
