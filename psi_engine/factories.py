"""What a user names as ``package.module:factory``: models, autoencoders, encoders, data sets."""

from __future__ import annotations

import importlib
import os
import re
import sys
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from typing import Any

from psi_engine.errors import InputError

_NAME = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*")


def names_factory(spec: str) -> bool:
    """Whether a text has the form ``package.module:factory``."""
    return _NAME.fullmatch(spec) is not None


def close_names(name: str, names: Sequence[str]) -> str | None:
    """``one of a, b, c``: the names most like a mistyped one, or None."""
    close = get_close_matches(name, names, n=5, cutoff=0.6)
    return "one of " + ", ".join(close) if close else None


def import_factory(spec: str, error: type[InputError], expected: str) -> Callable[[], Any]:
    """Import ``package.module:factory``; the working directory counts as importable.

    Parameters
    ----------
    spec : str
        Module, colon, name of something callable without arguments.
    error : type
        The kind of error to raise.
    expected : str
        What else could have been named, for the error where there is no such module.
    """
    module_name, _, attribute = spec.partition(":")
    here = os.getcwd()
    added = here not in sys.path
    if added:
        # An installed command does not search the working directory, ``python -m`` does.
        sys.path.insert(0, here)
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as problem:
        if problem.name is None or not f"{module_name}.".startswith(f"{problem.name}."):
            raise error(f"{module_name} cannot be imported", got=str(problem)) from problem
        raise error(
            f"no module {problem.name!r} for {spec!r}",
            expected=expected,
            fix="install it, or run in the folder that holds it",
        ) from problem
    except Exception as problem:
        raise error(
            f"{module_name} fails when it is imported",
            got=f"{type(problem).__name__}: {problem}",
        ) from problem
    finally:
        if added and here in sys.path:
            sys.path.remove(here)
    factory = getattr(module, attribute, None)
    if not callable(factory):
        callables = [key for key, value in vars(module).items() if callable(value)]
        raise error(
            f"{module_name} has no factory {attribute!r}",
            expected=close_names(attribute, callables) or "the name of a function",
        )
    return factory
