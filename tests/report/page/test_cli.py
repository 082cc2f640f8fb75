"""``report`` on the command line, and at the end of ``run``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from psi_engine.artifacts import Run
from psi_engine.cli import app
from psi_engine.cli.report import add_report
from psi_engine.cli.screen import error_console
from tests.toy import RUN_OPTIONS


def call(*arguments: Any) -> Any:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_report_prints_the_page_and_its_size(toy_run: Run, toy_report: Path) -> None:
    done = call("report", toy_run.path)
    assert (done.exit_code, done.stdout) == (0, f"{toy_report / 'index.html'}\n")
    assert "report is up to date: " in done.stderr
    machine = json.loads(call("report", toy_run.path, "--json").stdout)
    assert machine["report"] == str(toy_report / "index.html")
    assert machine["kept"] is True
    assert machine["notes"] == []
    assert machine["bytes"] > 100_000


def test_report_elsewhere_and_refusals(toy_run: Run, tmp_path: Path) -> None:
    done = call("report", toy_run.path, "--out", tmp_path / "page", "--quiet")
    assert (done.exit_code, done.stdout, done.stderr) == (
        0,
        f"{tmp_path / 'page/index.html'}\n",
        "",
    )
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis/text").write_text("…")
    refused = call("report", toy_run.path, "--out", tmp_path / "thesis")
    assert refused.exit_code == 2
    assert "something else than a report" in refused.stderr
    assert call("report", tmp_path / "none").exit_code == 2


def test_run_ends_with_a_report_unless_told_not_to(toy_run: Run, tmp_path: Path) -> None:
    options = ["--layers", "head", "--out", tmp_path / "run"]
    options += ["--data", toy_run.manifest["config"]["data"]]
    for name in ("model", "encoder", "device", "top_k", "patch", "replicates"):
        options += [f"--{name.replace('_', '-')}", RUN_OPTIONS[name]]
    bare = call("run", *options, "--no-report", "--json")
    assert bare.exit_code == 0, bare.stderr
    assert "report" not in json.loads(bare.stdout)
    assert not (tmp_path / "run/report").exists()
    whole = call("run", *options)
    assert whole.exit_code == 0, whole.stderr
    assert "report: " in whole.stderr
    assert "within each layer" not in whole.stderr  # there is one
    assert (tmp_path / "run/report/index.html").is_file()


def test_a_report_that_fails_leaves_the_run_as_it_is(copied: Run, capsys: Any) -> None:
    (copied.path / "report").write_text("a file in its place")
    assert add_report(error_console(), copied.path, quiet=True) is None
    told = capsys.readouterr()
    assert "the scores are kept, but no report could be written" in told.err
    assert told.out == ""


def test_a_failure_nobody_foresaw_leaves_the_run_too(
    toy_run: Run, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr("psi_engine.report_run.report", lambda *_, **__: 1 / 0)
    assert add_report(error_console(), toy_run.path, quiet=True) is None
    told = capsys.readouterr().err
    assert "no report could be written: ZeroDivisionError: division by zero" in told
    assert "Traceback" not in told
    assert add_report(error_console(), toy_run.path, quiet=True, debug=True) is None
    assert "Traceback" in capsys.readouterr().err
