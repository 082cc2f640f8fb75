"""Every code block of README and docs runs, or says in a comment why only its options are checked.

Commands run in this process on what a page is given. A run that names no encoder gets the toy one,
since the default downloads CLIP; reports are written where a page asks for one.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from psi_engine.cli import app
from tests.docs.conftest import Workshop
from tests.docs.pages import PAGES, PROJECT, Block, blocks, program_arguments

LANGUAGES = {"python", "sh", "console", "toml", "text", "json"}
ELSEWHERE = {"uv", "pip", "torchrun", "mkdocs"}
"""First words of commands that are not ours and not run."""


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(PROJECT)))
def test_page(page: Path, workshop: Workshop) -> None:
    names: dict[str, Any] = {"__name__": "docs"}
    for block in blocks(page):
        assert block.language in LANGUAGES, f"{block.where}: say what language the block is in"
        for name in block.given:
            workshop.provide(name)
        if block.title is not None and block.language == "python":
            compile(block.text, block.where, "exec")
        elif block.language == "python":
            _python(block, names)
        elif block.language in ("sh", "console"):
            for words in block.commands:
                _command(block, words)


def _python(block: Block, names: dict[str, Any]) -> None:
    # Line numbers of a failure are those of the page.
    code = compile("\n" * block.line + block.text, str(block.page), "exec")
    if not block.checked_only:
        exec(code, names)


def _command(block: Block, words: list[str]) -> None:
    arguments = program_arguments(words)
    if arguments is None:
        if words[:2] == ["python", "-m"]:
            assert importlib.util.find_spec(words[2]), f"{block.where}: no module {words[2]}"
        else:
            assert words[0] in ELSEWHERE, f"{block.where}: unknown command {words[0]}"
    elif block.checked_only or words[0] == "torchrun":
        check_options(arguments, block.where)
    else:
        if arguments[0] == "run" and not {"--encoder", "--config"} & set(arguments):
            arguments = [*arguments, "--encoder", "tests.toy:encoder"]
        if arguments[0] in ("run", "demo"):
            arguments = [*arguments, "--no-report"]
        done = CliRunner().invoke(app, arguments)
        assert done.exit_code == 0, f"{block.where}: {' '.join(words)}\n{done.output}"


def check_options(arguments: list[str], where: str) -> None:
    """Parse a command as the program would, without running it."""
    program: Any = typer.main.get_command(app)
    name = arguments[0]
    assert name in program.commands, f"{where}: no command {name}"
    try:
        program.commands[name].make_context(name, list(arguments[1:]))
    except Exception as error:
        raise AssertionError(f"{where}: {' '.join(arguments)}: {error}") from error


def test_a_wrong_option_is_found() -> None:
    with pytest.raises(AssertionError, match=r"page:1.*--no-such"):
        check_options(["run", "--no-such", "1"], "page:1")
    with pytest.raises(AssertionError, match="no command"):
        check_options(["ruin"], "page:1")
    check_options(["run", "--model", "resnet50"], "page:1")
