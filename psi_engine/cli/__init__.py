"""The command line: parse the options, make a config, call one function, show the result."""

from psi_engine.cli import run, score, adapters, swap, validate, bench, report, search, show  # noqa: I001  (order of --help)
from psi_engine.cli.program import app, main

__all__ = [
    "adapters",
    "app",
    "bench",
    "main",
    "report",
    "run",
    "score",
    "search",
    "show",
    "swap",
    "validate",
]
