"""The reference names what there is: options, public names, columns; and links lead somewhere."""

from __future__ import annotations

import re
import runpy
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import typer

import psi_engine
from psi_engine.cli import app
from tests.docs.pages import PAGES, PROJECT

_LINK = re.compile(r"\]\(([^)#\s]+)")
_MADE = {"reference/cli.md"}  # by docs/generated.py, in the site only


@pytest.fixture(scope="module")
def generated() -> dict[str, Any]:
    return runpy.run_path(str(PROJECT / "docs/generated.py"))


def test_every_option_of_every_command_is_in_the_reference(generated: dict[str, Any]) -> None:
    sections = re.split(r"^## ", generated["command_line"](), flags=re.M)
    told = {section.split("\n", 1)[0]: section for section in sections[1:]}
    program: Any = typer.main.get_command(app)
    assert list(told) == list(program.commands)
    for name, command in program.commands.items():
        options = {option for parameter in command.params for option in parameter.opts}
        named = {word for word in options if word.startswith("-")}
        assert named, name
        assert [word for word in named if f"`{word}" not in told[name]] == [], name


def test_every_public_name_is_in_the_reference() -> None:
    pages = [PROJECT / "docs/reference" / name for name in ("api.md", "settings.md")]
    text = "".join(page.read_text(encoding="utf-8") for page in pages)
    shown = {name.rsplit(".", 1)[-1] for name in re.findall(r"^::: (\S+)", text, flags=re.M)}
    assert set(psi_engine.__all__) - {"__version__"} <= shown


@pytest.mark.parametrize("table", ["channels", "clusters", "sites", "nulls"])
def test_every_column_is_explained(table: str, demo_run: Path) -> None:
    page = (PROJECT / "docs/reference/run-folder.md").read_text(encoding="utf-8")
    section = page.split(f"## {table}.parquet")[1].split("\n## ")[0]
    named = set(re.findall(r"`(\w+)`", section))
    per_component = {name[2:] for name in named if name.startswith("x_")}
    columns = {
        "x_" + name[2:] if name[:2] in ("s_", "q_", "d_") and name[2:] in per_component else name
        for name in pq.read_schema(demo_run / f"{table}.parquet").names
    }
    assert columns <= named, sorted(columns - named)
    assert named - {"x"} <= columns | {"concept", "similarity"}, sorted(named - columns)


def test_every_file_of_a_run_is_explained(demo_run: Path) -> None:
    page = (PROJECT / "docs/reference/run-folder.md").read_text(encoding="utf-8")
    files = {path.name + "/" * path.is_dir() for path in demo_run.iterdir() if path.name[0] != "."}
    assert {name for name in files if f"`{name}`" not in page} == set()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(PROJECT)))
def test_relative_links_lead_to_files(page: Path) -> None:
    for target in _LINK.findall(page.read_text(encoding="utf-8")):
        if "://" not in target and target not in _MADE:
            assert (page.parent / target).exists(), target


def test_links_are_moved_with_their_page(generated: dict[str, Any]) -> None:
    moved = generated["moved"]
    assert moved("[a](docs/x.md#y) [b](CHANGELOG.md)", "README.md", "index.md") == (
        "[a](x.md#y) [b](changelog.md)"
    )
    assert moved("[a](../../README.md)", "docs/howto/z.md", "howto/z.md") == "[a](../index.md)"
    assert moved("[a](https://x.y/docs/z)", "README.md", "index.md") == "[a](https://x.y/docs/z)"
