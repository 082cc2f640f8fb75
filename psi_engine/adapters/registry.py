"""The tools by name, and the one way in and out for all of them."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

from psi_engine.adapters.contents import Contents, ReadOptions
from psi_engine.errors import InputError

TOOLS = {
    "semanticlens": "semanticlens",
    "crp": "crp",
    "clip-dissect": "clip_dissect",
    "exemplars": "exemplars",
    "saev": "saev",
    "sae-for-vlm": "sae_for_vlm",
}
"""Name of each tool's module: ``exemplars`` are those of MILAN and MAIA, ``crp`` is PURE's too."""


def adapter(tool: str) -> ModuleType:
    """Return the module of a tool; it has ``WHAT``, ``read`` and ``write``.

    Raises
    ------
    InputError
        No such tool.
    """
    if tool not in TOOLS:
        raise InputError("unknown tool", got=repr(tool), expected="one of " + ", ".join(TOOLS))
    return import_module(f"psi_engine.adapters.{TOOLS[tool]}")


def read(tool: str, *paths: str | Path, **options: Any) -> Contents:
    """Read a tool's files; nothing in them is executed.

    Parameters
    ----------
    tool : str
        A name of :data:`TOOLS`.
    *paths : str or Path
        Files or folders, as the tool's module says.
    **options
        Fields of :class:`ReadOptions`.

    Raises
    ------
    InputError
        No such tool, or a file that is missing, broken, unsafe or does not fit.
    """
    module = adapter(tool)
    for path in paths:
        if not Path(path).exists():
            raise InputError("a file is not there", got=str(path), expected=module.WHAT)
    if not paths:
        raise InputError("no files named", expected=module.WHAT)
    found: Contents = module.read([Path(path) for path in paths], ReadOptions(**options))
    return found


def write(tool: str, contents: Contents, folder: str | Path) -> list[Path]:
    """Write contents as a tool's files into a folder; nothing there is overwritten.

    Returns
    -------
    list of Path
        The files written.

    Raises
    ------
    InputError
        No such tool, contents without what its files need, or a file is there already.
    """
    written: list[Path] = adapter(tool).write(contents, Path(folder))
    return written
