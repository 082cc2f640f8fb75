"""``psi-engine search``: what it prints, and how it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

import psi_engine as psi
from psi_engine.cli import app


def call(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["search", *(str(argument) for argument in arguments)])


def test_a_text_gives_a_table_nearest_first(run: Path) -> None:
    expected = psi.search(run, "red", top=4).table.to_pylist()
    done = call(run, "red", "--top", 4)
    assert done.exit_code == 0, done.stderr
    lines = done.stdout.splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[0].split() == ["channel", "cluster", "cos", "PSI", "verdict", "concepts"]
    for line, row in zip(lines[2:], expected, strict=True):
        address = f"{row['layer']}:{row['channel']}"
        numbers = [str(row["cluster"]), f"{row['similarity']:.3f}", f"{row['psi']:.3f}"]
        assert line.split()[:5] == [str(row["rank"]), address, *numbers]
        assert row["concepts"][0]["concept"].split()[0] in line


def test_json_is_the_whole_table(run: Path) -> None:
    found = psi.search(run, like="conv2:3", top=3, layers=["conv2"], per="channel")
    options = ("--like", "conv2:3", "--top", 3, "--layer", "conv2", "--channels", "--json")
    done = call(run, *options)
    assert json.loads(done.stdout) == {
        "query": "like conv2:3",
        "found": found.table.to_pylist(),
        "notes": [],
    }


def test_several_runs_and_examples_are_shown(run: Path, second_run: Path) -> None:
    done = call(run, second_run, "--like", f"conv2:3,{second_run.name}/conv1:1", "--top", 30)
    assert done.exit_code == 0, done.stderr
    heads = done.stdout.splitlines()[0].split()
    assert {"run", "like"} <= {*heads}
    assert not {"run", "like"} & {*call(run, "red").stdout.splitlines()[0].split()}


def test_an_image_is_searched_by(run: Path, images: Path) -> None:
    file = next(images.rglob("*.png"))
    done = call(run, "--image", file, "--json", "--verdict", "random-like")
    assert done.exit_code == 0, done.stderr
    assert {row["verdict"] for row in json.loads(done.stdout)["found"]} == {"random-like"}


def test_nothing_found_is_said(run: Path) -> None:
    held = {*psi.open_run(run).channels["verdict"].to_pylist()}
    missing = next(x for x in ("polysemantic", "monosemantic", "random-like") if x not in held)
    done = call(run, "red", "--verdict", missing)
    assert done.exit_code == 0
    assert "nothing found: no channel fits" in done.stdout


def test_a_remade_index_is_noted_on_stderr(copy: Path) -> None:
    call(copy, "red")
    manifest = copy / "manifest.json"
    held = json.loads(manifest.read_text())
    held["stages"]["score"]["key"] = "another"
    manifest.write_text(json.dumps(held))
    again = call(copy, "red")
    assert "is made again" in again.stderr.replace("\n", " ")
    assert "note" not in call(copy, "red").stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("RUN",), "no query is given"),
        (("RUN", "RUN"), "no query is given"),
        (("red",), "no run folder is given"),
        (("nowhere", "red"), "not a run folder"),
        (("RUN", " "), "the query is empty"),
        (("RUN", "--like", "conv2:99"), "one of its 8 channels"),
        (("RUN", "--like", "conv2:1", "--image", "x.png"), "what is searched for is not clear"),
        (("RUN", "red", "--top", "0"), "too few results"),
    ],
)
def test_bad_questions_exit_with_2_and_one_message(
    run: Path, arguments: tuple[str, ...], message: str
) -> None:
    done = call(*(run if x == "RUN" else x for x in arguments))
    assert done.exit_code == 2
    assert done.stderr.startswith("error: ")
    assert message in done.stderr
    assert not done.stdout
