"""Numbers for the page: as many digits as it shows, and no NaN, which JSON has no word for."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from typing import Any

import pyarrow as pa


def rounded(values: Iterable[float | None], digits: int = 5) -> list[float | None]:
    """Round to significant digits; None for what is missing or not finite."""
    return [None if x is None or not math.isfinite(x) else float(f"{x:.{digits}g}") for x in values]


def column(table: pa.Table, name: str, digits: int | None = 5) -> list[Any]:
    """A column as a list; ``digits`` None keeps every digit (and strings and integers)."""
    values = table[name].to_pylist()
    return rounded(values, 17 if digits is None else digits) if _real(table, name) else values


def _real(table: pa.Table, name: str) -> bool:
    return pa.types.is_floating(table.schema.field(name).type)


def script(name: str, value: Any) -> str:
    """A script that hands a value to the page under a name.

    JSON is JavaScript. Everything beyond ASCII is escaped: file names may hold bytes that are no
    text, and no encoding is to be guessed. ``<`` is escaped too, so that nothing looks like
    markup wherever the text ends up.
    """
    text = json.dumps(value, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
    return f'PSI.receive("{name}",{text});\n'


def printable(text: str) -> str:
    """The text with bytes of file names that are no text written as escapes."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
