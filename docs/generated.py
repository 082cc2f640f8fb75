"""Pages of the site that are made from other files when it is built.

A hook of MkDocs. The README is the first page; CONTRIBUTING, the changelog and the list of
benchmarks are pages of their own, and so is the notebook; the reference of the command line is made
from the program, so that it cannot go stale.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from posixpath import dirname, join, normpath, relpath
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]

PAGES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "benchmarks/README.md": "benchmarks.md",
}
"""Files outside ``docs/`` that the site shows, and where."""

NOTEBOOK = "docs/demo.ipynb"

_LINK = re.compile(r"(\]\(|src=\")([^)#\"\s]+)")
_ABSOLUTE = re.compile(r"[a-z]+:")
_ROLE = re.compile(r":(?:attr|class|data|func|meth|mod):<code>~?([\w.]+)</code>")


def on_files(files: Files, config: Any) -> Files:
    """Add the pages."""
    for source, page in PAGES.items():
        text = (ROOT / source).read_text(encoding="utf-8")
        files.append(File.generated(config, page, content=moved(text, source, page)))
    files.append(File.generated(config, "reference/cli.md", content=command_line()))
    files.append(File.generated(config, "notebook.md", content=notebook()))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Point links that leave ``docs/`` at the pages made here."""
    source = f"docs/{page.file.src_uri}"
    if page.file.generated_by:
        return markdown
    return moved(markdown, source, page.file.src_uri)


def on_page_content(html: str, **_: Any) -> str:
    """Turn the roles of docstrings, such as ``:func:``, into links where the name is shown."""
    return _ROLE.sub(r'<autoref optional identifier="\1"><code>\1</code></autoref>', html)


def moved(text: str, source: str, page: str) -> str:
    """Rewrite the links of a Markdown file for its place in the site.

    Parameters
    ----------
    text : str
    source, page : str
        Where the file lies, from the project's folder; and its page, from ``docs/``.
    """

    def rewritten(match: re.Match[str]) -> str:
        start, target = match.groups()
        if _ABSOLUTE.match(target):
            return match[0]
        there = normpath(join(dirname(source), target))
        inside = PAGES.get(there, there.removeprefix("docs/"))
        return start + relpath(inside, dirname(page) or ".")

    return _LINK.sub(rewritten, text)


def notebook() -> str:
    """The demo's notebook as a page; its outputs are not kept."""
    cells = json.loads((ROOT / NOTEBOOK).read_text(encoding="utf-8"))["cells"]
    parts = []
    for cell in cells:
        text = "".join(cell["source"])
        parts.append(text if cell["cell_type"] == "markdown" else f"```python\n{text}\n```")
    parts.insert(1, "[The notebook](demo.ipynb) to run; what follows is its text.")
    return "\n\n".join(parts) + "\n"


def command_line() -> str:
    """The reference of the command line: each command, its arguments and options."""
    import typer

    from psi_engine.cli import app

    program: Any = typer.main.get_command(app)
    parts = [
        "# Command line",
        "`psi-engine` and `python -m psi_engine` are the same program. Progress and tables go to "
        "stderr, the result's path (with `--json`, the result) to stdout. Exit codes: 0 done, "
        "1 failed, 2 bad usage or input, 130 interrupted.",
    ]
    for name, command in program.commands.items():
        context = command.make_context(name, [], resilient_parsing=True)
        usage = " ".join([f"psi-engine {name}", *command.collect_usage_pieces(context)])
        parts += [f"## {name}", command.help.strip(), f"```text\n{usage}\n```"]
        records = [parameter.get_help_record(context) for parameter in command.get_params(context)]
        rows = [_row(*record) for record in records if record and record[0] != "--help"]
        parts.append("\n".join(["| option | |", "|---|---|", *rows]))
    return "\n\n".join(parts) + "\n"


def _row(option: str, told: str) -> str:
    told = told.replace("|", "\\|").replace("[", "\\[")
    return f"| `{option}` | {told} |"
