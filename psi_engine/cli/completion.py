"""What the shell offers at the tab key: names that can be had without loading a model or torch."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any, get_args

import typer

Complete = Callable[[str], list[str]]

_PREFIXES = ("timm:", "open_clip:")
# How torchvision enters a model: @register_model(), other decorators, then the function's name.
_REGISTERED = re.compile(r"^@register_model\((?:name=\"(\w+)\")?\)\n(?:@.*\n)*def (\w+)\(", re.M)


def choices(kind: Any, *more: str) -> Complete:
    """Complete with the choices of a ``Literal`` type."""

    def complete(incomplete: str) -> list[str]:
        return [name for name in (*get_args(kind), *more) if name.startswith(incomplete)]

    return complete


def models(incomplete: str) -> list[str]:
    """Complete ``--model``: torchvision's names, and the other libraries' prefixes.

    The names are read out of torchvision's files: importing it takes seconds.
    """
    found = set(_PREFIXES)
    spec = find_spec("torchvision")
    if spec is not None and spec.origin is not None:
        for file in (Path(spec.origin).parent / "models").glob("*.py"):
            text = file.read_text(encoding="utf-8")
            found |= {name or function for name, function in _REGISTERED.findall(text)}
    return sorted(name for name in found if name.startswith(incomplete))


def parts(incomplete: str) -> list[str]:
    """Complete the parts of ``validate``, one a file."""
    folder = Path(__file__).parents[1] / "validation" / "parts"
    names = (file.stem.replace("_", "-") for file in folder.glob("[!_]*.py"))
    return sorted(name for name in names if name.startswith(incomplete))


def layers(ctx: typer.Context, incomplete: str) -> list[str]:
    """Complete ``LAYER:CHANNEL`` of ``show`` by the layers of the run that is named before it."""
    try:
        file = Path(str(ctx.params.get("run_folder"))) / "manifest.json"
        found = json.loads(file.read_text(encoding="utf-8"))["layers"]["depth"]
    except (OSError, ValueError, LookupError, TypeError):
        return []
    return [f"{name}:" for name in found if f"{name}:".startswith(incomplete)]
