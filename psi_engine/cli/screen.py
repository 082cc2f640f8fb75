"""Progress, and errors as one message with an exit code."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Iterator
from typing import Any

import typer
from rich.console import Console

from psi_engine.errors import PsiEngineError, RankError


def error_console() -> Console:
    """Where everything goes that is not the result."""
    return Console(stderr=True)


def screen(console: Console, quiet: bool) -> Any:
    """Show progress while the context is open, unless quiet."""
    from psi_engine.report.terminal import ProgressScreen

    return ProgressScreen(console, quiet)


@contextlib.contextmanager
def reported(debug: bool, *, resumable: bool = False) -> Iterator[None]:
    """Turn errors into one message and an exit code: 1 failed, 2 bad input, 130 interrupted."""
    try:
        yield
    except PsiEngineError as error:
        if debug:
            raise
        if _is_told_here(error):
            sys.stderr.write(f"{_speaker()}error: {error}\n")
        raise typer.Exit(error.exit_code) from None
    except KeyboardInterrupt:
        hint = "; the same command continues where it stopped" if resumable else ""
        if not _speaker():
            sys.stderr.write(f"interrupted{hint}\n")
        raise typer.Exit(130) from None
    except (typer.Exit, typer.Abort):
        raise
    except Exception as error:
        if debug:
            raise
        sys.stderr.write(
            f"{_speaker()}error: {type(error).__name__}: {error}\n"
            "run again with --debug for the traceback\n"
        )
        raise typer.Exit(1) from None


def _speaker() -> str:
    """Say which rank speaks; rank 0 speaks for all."""
    rank = os.environ.get("RANK", "0")
    return "" if rank == "0" else f"rank {rank}: "


def _is_told_here(error: PsiEngineError) -> bool:
    """Whether this rank should tell: not what every rank meets, nor that another one stopped."""
    return not _speaker() or (error.rank is not None and not isinstance(error, RankError))


def finish(console: Console, summary: dict[str, Any], as_json: bool, quiet: bool) -> None:
    """Print the summary of a finished run or scored file."""
    from psi_engine.report.terminal import show_summary, show_truth

    if as_json:
        typer.echo(json.dumps(summary, indent=2, allow_nan=False))
        return
    if not quiet:
        show_summary(console, summary)
        if "truth" in summary:
            show_truth(console, summary["truth"])
        if summary.get("report"):
            console.print(f"report: {summary['report']}", highlight=False, soft_wrap=True)
    typer.echo(summary["run"])
