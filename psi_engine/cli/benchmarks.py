"""The benchmarks of a checkout, which lie beside the package and are never installed with it."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from psi_engine.errors import InputError

FOLDER = Path(__file__).parents[2] / "benchmarks"
"""Where they lie in a checkout."""


def listed() -> dict[str, str]:
    """Every benchmark's name and the first line of what it says of itself.

    Raises
    ------
    InputError
        psi-engine is installed without its project folder.
    """
    if not (FOLDER / "harness.py").is_file():
        raise InputError(
            "the benchmarks are not here",
            got=f"psi-engine installed without them in {FOLDER.parent}",
            expected="a checkout of the project: they are no part of the package",
            fix="get the project's source and give the same command as `uv run psi-engine bench …` "
            "in its folder",
        )
    found = {}
    for path in sorted(FOLDER.glob("*.py")):
        text = path.read_text(encoding="utf-8")
        if 'if __name__ == "__main__":' in text:
            found[path.stem] = (ast.get_docstring(ast.parse(text)) or "").partition("\n")[0]
    return found


def run(name: str, arguments: Sequence[str]) -> int:
    """Run one as ``python -m benchmarks.NAME`` would, with this interpreter; its exit status.

    Paths among the arguments are taken from the working folder.

    Raises
    ------
    InputError
        There is no such benchmark, or none at all.
    """
    names = listed()
    if name not in names:
        raise InputError(
            "no such benchmark",
            got=repr(name),
            expected=f"one of {', '.join(names)}, or the TOML file of a suite",
            fix="psi-engine bench --list says what each shows",
        )
    there = os.pathsep.join(filter(None, [str(FOLDER.parent), os.environ.get("PYTHONPATH")]))
    command = [sys.executable, "-m", f"benchmarks.{name}", *arguments]
    return subprocess.run(command, env=os.environ | {"PYTHONPATH": there}).returncode
