"""The code blocks of the documentation, as a reader meets them.

A block is run unless a comment above it says ``<!-- checked only: why -->``: then its commands are
held against the program's options, and Python is compiled. ``<!-- given: NAME -->`` says what a
page takes to be in the working folder, see ``Workshop``.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PROJECT = Path(__file__).parents[2]
PAGES = sorted(
    [PROJECT / "README.md", PROJECT / "CONTRIBUTING.md", *(PROJECT / "docs").rglob("*.md")]
)

_FENCE = re.compile(r"^(?P<indent> *)```(?P<language>\w*)(?: title=\"(?P<title>[^\"]+)\")?\s*$")
_COMMENT = re.compile(r"<!-- (given|checked only): (.+?) -->")


@dataclass(frozen=True)
class Block:
    """One fenced block; ``title`` is the file it stands for, ``line`` where it begins."""

    page: Path
    line: int
    language: str
    title: str | None
    text: str
    checked_only: bool
    given: tuple[str, ...]

    @property
    def where(self) -> str:
        return f"{self.page.relative_to(PROJECT)}:{self.line}"

    @property
    def commands(self) -> list[list[str]]:
        """The block's commands, without placeholders, comments and prompts."""
        joined = self.text.replace("\\\n", " ")
        found = []
        for line in joined.splitlines():
            words = shlex.split(line.removeprefix("$ "), comments=True)
            words = [word for word in words if word not in ("…", "...")]
            found += _split(words)
        return found


def _split(words: list[str]) -> Iterator[list[str]]:
    part: list[str] = []
    for word in [*words, "&&"]:
        if word in ("&&", ";"):
            if part:
                yield part
            part = []
        else:
            part.append(word)


def blocks(page: Path) -> list[Block]:
    """All fenced blocks of a page, in order."""
    found: list[Block] = []
    opened: re.Match[str] | None = None
    start, body, given, checked = 0, [], [], False
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1):
        fence = _FENCE.match(line)
        if opened is not None:
            if line.strip() == "```":
                text = "\n".join(body) + "\n"
                found.append(
                    Block(page, start, opened["language"], opened["title"], text, checked,
                          tuple(given))
                )  # fmt: skip
                opened, body, given, checked = None, [], [], False
            else:
                body.append(line.removeprefix(opened["indent"]))
        elif fence is not None:
            opened, start = fence, number
        else:
            for kind, what in _COMMENT.findall(line):
                if kind == "given":
                    given += [name.strip() for name in what.split(",")]
                else:
                    checked = True
    if opened is not None:
        raise ValueError(f"{page}:{start}: the block is never closed")
    return found


def titled() -> dict[str, Block]:
    """The blocks that stand for files, of all pages, by the file's name."""
    return {block.title: block for page in PAGES for block in blocks(page) if block.title}


def program_arguments(words: list[str]) -> list[str] | None:
    """What a command gives to psi-engine; None where it calls something else."""
    if words[0] == "psi-engine":
        return words[1:]
    if words[:3] == ["uv", "run", "psi-engine"]:
        return words[3:]
    if words[0] in ("torchrun", "python") and "psi_engine" in words:
        return words[words.index("psi_engine") + 1 :]
    return None
