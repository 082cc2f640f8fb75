"""The command line: parse the options, make a config, call one function, show the result."""

from psi_engine.cli import run, score, swap, validate, bench, show  # noqa: I001  (order of --help)
from psi_engine.cli.program import app, main

__all__ = ["app", "bench", "main", "run", "score", "show", "swap", "validate"]
