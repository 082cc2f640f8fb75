"""Settings as TOML: what a run folder says of itself, and what ``--config`` reads.

Reading is the standard library's. What is written is the little that settings need: strings,
numbers, truth values, lists of them, and one level of tables.
"""

from __future__ import annotations

import ast
import inspect
import json
import re
import textwrap
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from psi_engine import artifacts
from psi_engine.config import RunConfig, ScoreConfig
from psi_engine.errors import InputError

_REPEATS = (
    "Every setting of this run, as it was used. psi-engine {command} --config FILE --out FOLDER "
    "repeats it; options of the command line win over the file."
)
_ROLE = re.compile(r":\w+:`~?([^`]+)`")
_BARE = re.compile(r"[A-Za-z0-9_-]+")


def read_settings(path: Path, what: str = "config file") -> dict[str, Any]:
    """Read a TOML file; dashes in names become underscores.

    Parameters
    ----------
    path : Path
    what : str
        What to call the file in an error.

    Raises
    ------
    InputError
        The file is not there, or no TOML.
    """
    if not path.is_file():
        raise InputError(f"the {what} is not there", got=str(path), expected="a TOML file")
    try:
        found = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"the {what} is not TOML", got=f"{path}: {error}") from None
    return _underscored(found)


def _underscored(table: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name.replace("-", "_"): _underscored(value) if isinstance(value, dict) else value
        for name, value in table.items()
    }


def write_run_settings(folder: Path, config: RunConfig) -> None:
    """Write the settings of a run into its folder, for ``psi-engine run --config``."""
    _write(folder, "run", vars(config), settings_docs(RunConfig))


def write_score_settings(
    folder: Path, config: ScoreConfig, inputs: Mapping[str, str | Path | None]
) -> None:
    """Write the settings and files of a scored file, for ``psi-engine score --config``."""
    _write(folder, "score", {**inputs, "score": config}, {})


def _write(folder: Path, command: str, values: Mapping[str, Any], docs: Mapping[str, str]) -> None:
    head = "\n".join(_comment(_REPEATS.format(command=command)))
    with artifacts.atomic(folder / artifacts.CONFIG) as temporary:
        text = f"{head}\n\n{to_toml(values, docs)}"
        temporary.write_text(text, encoding="utf-8", newline="\n")


def to_toml(values: Mapping[str, Any], docs: Mapping[str, str] | None = None) -> str:
    """Write values as TOML; :func:`tomllib.loads` gives them back.

    Parameters
    ----------
    values : Mapping
        Strings, paths, whole numbers, floats, truth values, lists and tuples of these, None, and
        mappings or dataclasses of such values, which become tables.
    docs : Mapping, optional
        Comments by name; a dataclass brings its own.

    Notes
    -----
    TOML has no null: a value that is None stands in a comment, as does text that is not Unicode
    (a file name of other bytes). Tuples come back as lists, paths as strings.

    Raises
    ------
    InputError
        A value of another kind.
    """
    plain, tables = [], []
    for name, value in values.items():
        if is_dataclass(value) and not isinstance(value, type):
            inner = {f.name: getattr(value, f.name) for f in fields(value)}
            tables.append(f"[{_key(name)}]\n{to_toml(inner, settings_docs(type(value)))}")
        elif isinstance(value, Mapping):
            tables.append(f"[{_key(name)}]\n{to_toml(value)}")
        else:
            plain += [*_comment((docs or {}).get(name, "")), _line(name, value)]
    body = "".join(f"{line}\n" for line in plain)
    return "\n".join([part for part in (body, *tables) if part])


def _line(name: str, value: object) -> str:
    if value is None:
        return f"# {_key(name)} is not set"
    written = _value(name, value)
    try:
        written.encode()
    except UnicodeEncodeError:
        return f"# {_key(name)} is no Unicode text and cannot stand here: {value!a}"
    return f"{_key(name)} = {written}"


def _key(name: str) -> str:
    return name if _BARE.fullmatch(name) else _string(name)


def _value(name: str, value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str | Path):
        return _string(str(value))
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_value(name, item) for item in value) + "]"
    raise InputError(f"{name} cannot be written as TOML", got=type(value).__name__)


def _string(text: str) -> str:
    # JSON's escapes are TOML's, but for DEL, which TOML wants escaped
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def _comment(text: str) -> list[str]:
    return textwrap.wrap(
        text, 100, initial_indent="# ", subsequent_indent="# ", break_on_hyphens=False
    )


def settings_docs(kind: type) -> dict[str, str]:
    """The strings that stand below the fields of a dataclass, by field, in plain words.

    Empty where the source is not at hand.
    """
    try:
        (home,) = ast.parse(textwrap.dedent(inspect.getsource(kind))).body
    except (OSError, TypeError):
        return {}
    return dict(_docs(home)) if isinstance(home, ast.ClassDef) else {}


def _docs(home: ast.ClassDef) -> Iterator[tuple[str, str]]:
    for line, below in zip(home.body, home.body[1:], strict=False):
        if not (isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name)):
            continue
        if isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant):
            text = " ".join(str(below.value.value).split())
            yield line.target.id, _ROLE.sub(r"\1", text).replace("``", "")
