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

    JSON is JavaScript; only the two line separators that old engines refuse are escaped, and
    ``<`` too, so that nothing looks like markup wherever the text ends up.
    """
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    for sign in "<\u2028\u2029":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return f'PSI.receive("{name}",{text});\n'
