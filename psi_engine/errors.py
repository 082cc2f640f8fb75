"""The errors psi-engine raises on purpose.

Every message says what is wrong, what was got, what was expected and what to do about it.
``exit_code`` is what the command line returns: 2 for bad usage or input, 1 for a failure while
working. Errors of input are also ``ValueError`` so that library users can catch them as usual.
"""

from __future__ import annotations


class PsiEngineError(Exception):
    """Base of all errors raised on purpose.

    Parameters
    ----------
    what : str
        The thing that is wrong, in one clause.
    got, expected : str, optional
        What was found and what would have been right.
    fix : str, optional
        What the reader can do now.
    """

    exit_code = 1
    rank: int | None = None
    """The rank that met it alone, in a job of several."""

    def __init__(
        self,
        what: str,
        *,
        got: object = None,
        expected: object = None,
        fix: str | None = None,
    ) -> None:
        parts = [what]
        if got is not None:
            parts.append(f"got {got}")
        if expected is not None:
            parts.append(f"expected {expected}")
        if fix is not None:
            parts.append(fix)
        super().__init__("; ".join(parts))


class InputError(PsiEngineError, ValueError):
    """A bad option, argument or file: refused before any work (exit code 2)."""

    exit_code = 2


class DataError(InputError):
    """An image source that is missing, empty or not in a known layout."""


class ModelError(InputError):
    """A model, its weights, a layer or a channel that cannot be found or loaded."""


class EncoderError(InputError):
    """An image or text encoder that cannot be built."""


class DeviceError(InputError):
    """A device or backend that was asked for by name and is not usable here."""


class RunFolderError(InputError):
    """A run folder that belongs to another run, or is not one."""


class CorruptDataError(PsiEngineError):
    """Too many unreadable images in the middle of a run."""


class RankError(PsiEngineError):
    """Another rank of the job stopped; its own message says why."""


class DiskFullError(PsiEngineError):
    """There is no room for a file; what was saved before is whole."""
