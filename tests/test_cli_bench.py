"""``psi-engine bench`` with a benchmark's name: the checkout's own, its options untouched."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from psi_engine.cli import app, benchmarks

PROJECT = Path(__file__).parents[1]


@pytest.fixture
def checkout(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A project whose one benchmark writes down what it was given, and is called elsewhere."""
    folder = tmp_path / "project" / "benchmarks"
    folder.mkdir(parents=True)
    (folder / "__init__.py").touch()
    (folder / "harness.py").write_text('"""No benchmark."""\n')
    (folder / "two_words.py").write_text(
        '"""Says what it was given.\n\nAt length.\n"""\nimport sys\nfrom pathlib import Path\n'
        'if __name__ == "__main__":\n'
        '    Path("given").write_text(f"{__package__} {sys.executable} {sys.argv[1:]}")\n'
        "    sys.exit(3)\n"
    )
    monkeypatch.setattr(benchmarks, "FOLDER", folder)
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    return work


def test_options_after_the_name_and_the_exit_status_are_the_benchmark_s(checkout: Path) -> None:
    given = ["--channels", "64", "--out", "x", "--json", "--help", "-q"]
    for name in ("two_words", "two-words"):
        assert CliRunner().invoke(app, ["bench", name, *given]).exit_code == 3
        told = (checkout / "given").read_text()
        assert told == f"benchmarks {sys.executable} {given}"
        (checkout / "given").unlink()


def test_options_before_the_name_are_refused_not_dropped(checkout: Path) -> None:
    (checkout / "two_words").mkdir()  # a folder is no suite
    for option in (["--out", "x"], ["--json"], ["--quiet"]):
        done = CliRunner().invoke(app, ["bench", *option, "two_words"])
        assert done.exit_code == 2
        assert "before the benchmark's name" in done.stderr
    assert not (checkout / "given").exists()
    assert CliRunner().invoke(app, ["bench", "two_words"]).exit_code == 3


def test_listed_with_one_line_each(checkout: Path) -> None:
    done = CliRunner().invoke(app, ["bench", "--list"])
    assert done.output.split() == ["two_words", "Says", "what", "it", "was", "given."]


def test_the_checkout_s_own_are_all_listed() -> None:
    shown = benchmarks.listed()
    assert {"scoring", "gpu", "solver"} <= set(shown)
    assert not {"harness", "routes", "problems", "__init__"} & set(shown)
    assert all(line.endswith(".") for line in shown.values())
    table = (PROJECT / "benchmarks/README.md").read_text(encoding="utf-8")
    assert all(f"benchmarks.{name}" in table for name in shown)


def test_what_is_no_benchmark_is_refused(checkout: Path) -> None:
    done = CliRunner().invoke(app, ["bench", "skoring"])
    assert done.exit_code == 2
    assert "no such benchmark; got 'skoring'; expected one of two_words" in done.output
    assert "nothing to run" in CliRunner().invoke(app, ["bench"]).output
    # a file of a bare name, and anything with a suffix, is a suite
    (checkout / "two_words").write_text("")
    assert "names no models" in CliRunner().invoke(app, ["bench", "two_words"]).output
    wrong = CliRunner().invoke(app, ["bench", "suite.toml", "--channels", "3"])
    assert wrong.exit_code == 2
    assert "No such option" in wrong.output


def test_an_installed_package_says_where_they_are(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(benchmarks, "FOLDER", tmp_path / "benchmarks")
    for arguments in (["scoring"], ["--list"]):
        done = CliRunner().invoke(app, ["bench", *arguments])
        assert done.exit_code == 2
        assert "the benchmarks are not here" in done.output
        assert "checkout of the project" in done.output
