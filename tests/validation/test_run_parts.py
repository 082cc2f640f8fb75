"""The framework of the parts: what is computed, kept, skipped, written, drawn and told."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from psi_engine import artifacts
from psi_engine.cli import app
from psi_engine.errors import InputError, RunFolderError
from psi_engine.report.parts import finished_parts, read_tables
from psi_engine.validation import Options, validate_run
from psi_engine.validation import parts as registry
from psi_engine.validation.part import Context, Part, Result
from psi_engine.validation.run_parts import flat


class Recorder:
    """Two parts that count how often they are asked."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.refusal: str | None = None
        self.fails = False
        part = Part("alpha", self.compute, self.draw, lambda _: self.refusal, ("bootstrap",))
        self.parts = {"alpha": part, "beta": replace(part, name="beta", needs=lambda _: None)}

    def compute(self, context: Context) -> Result:
        self.calls.append(f"compute {context.folder.name}")
        context.tell("looking", 1, 1)
        if self.fails and context.folder.name == "alpha":
            raise InputError("nothing to see")
        table = pa.table({"x": [1.0, 0.1], "names": [["a", "b"], []], "image": [b"1", b"2"]})
        return Result({"values": table}, ("a note",), ("a finding",))

    def draw(self, tables: dict[str, pa.Table], stem: Path) -> list[Path]:
        self.calls.append(f"draw {stem.name} {tables['values']['x'].to_pylist()}")
        path = stem.with_suffix(".svg")
        path.write_text("<svg/>")
        return [path]


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    made = Recorder()
    monkeypatch.setattr(registry, "NAMES", tuple(made.parts))
    monkeypatch.setattr(registry, "load", made.parts.__getitem__)
    return made


def test_a_part_writes_tables_figure_and_record(recorder: Recorder, toy_copy: Path) -> None:
    said: list[str] = []
    found = validate_run(toy_copy, ["alpha"], progress=lambda what, *_: said.append(what))
    assert [(x.part, x.status) for x in found] == [("alpha", "done")]
    assert found[0].tables == ("validation/alpha-values.parquet",)
    assert found[0].figures == ("figures/alpha.svg",)
    assert (found[0].notes, found[0].headline) == (("a note",), ("a finding",))
    assert recorder.calls == ["compute alpha", "draw alpha [1.0, 0.1]"]
    assert said == ["alpha: looking"]
    stored = pq.read_table(toy_copy / "validation/alpha-values.parquet")
    assert stored["names"].to_pylist() == [["a", "b"], []]
    csv = pyarrow.csv.read_csv(toy_copy / "validation/alpha-values.csv")
    assert csv.to_pydict() == {"x": [1.0, 0.1], "names": ['["a", "b"]', "[]"]}
    record = finished_parts(artifacts.open_run(toy_copy))[0]
    assert record["current"]
    assert record["options"] == {"bootstrap": 1000}
    assert read_tables(toy_copy, record)["values"].num_rows == 2


def test_what_still_holds_is_kept_and_what_does_not_is_made_again(
    recorder: Recorder,
    toy_copy: Path,
) -> None:
    validate_run(toy_copy)
    recorder.calls.clear()
    kept = validate_run(toy_copy, options=Options(null_channels=7))  # no part depends on it
    assert [x.status for x in kept] == ["kept", "kept"]
    assert kept[0].notes == ("a note",)
    assert recorder.calls == []
    assert [x.status for x in validate_run(toy_copy, ["beta"], Options(bootstrap=50))] == ["done"]
    assert recorder.calls[0] == "compute beta"
    recorder.calls.clear()
    (toy_copy / "figures/alpha.svg").unlink()
    assert validate_run(toy_copy, ["alpha"])[0].status == "kept"
    assert recorder.calls == ["draw alpha [1.0, 0.1]"]
    recorder.calls.clear()
    (toy_copy / "validation/alpha-values.parquet").unlink()
    assert validate_run(toy_copy, ["alpha"])[0].status == "done"
    recorder.parts["alpha"] = replace(recorder.parts["alpha"], version=2)
    assert validate_run(toy_copy, ["alpha"])[0].status == "done"


def test_other_scores_make_every_part_stale(recorder: Recorder, toy_copy: Path) -> None:
    validate_run(toy_copy)
    manifest = json.loads((toy_copy / "manifest.json").read_text())
    manifest["stages"]["score"]["key"] = "another"
    (toy_copy / "manifest.json").write_text(json.dumps(manifest))
    parts = finished_parts(artifacts.open_run(toy_copy))
    assert [(part["part"], part["current"]) for part in parts] == [
        ("alpha", False),
        ("beta", False),
    ]
    assert [x.status for x in validate_run(toy_copy)] == ["done", "done"]


def test_what_cannot_be_had_is_skipped_unless_asked_for(
    recorder: Recorder,
    toy_copy: Path,
) -> None:
    recorder.refusal = "no labels"
    found = validate_run(toy_copy)
    assert [(x.part, x.status, x.reason) for x in found] == [
        ("alpha", "skipped", "no labels"), ("beta", "done", "")
    ]  # fmt: skip
    recorder.calls.clear()
    with pytest.raises(InputError, match="alpha cannot be had on this run; got no labels"):
        validate_run(toy_copy, ["beta", "alpha"], Options(bootstrap=99))
    assert recorder.calls == []


def test_a_part_that_fails_leaves_no_record_and_the_others_run(
    recorder: Recorder,
    toy_copy: Path,
) -> None:
    validate_run(toy_copy)
    recorder.fails = True
    found = validate_run(toy_copy, options=Options(bootstrap=77))
    assert [(x.part, x.status) for x in found] == [("alpha", "failed"), ("beta", "done")]
    assert found[0].reason == "nothing to see"
    assert not list((toy_copy / "validation").glob("alpha*"))
    assert not (toy_copy / "figures/alpha.svg").exists()


def test_a_fault_in_a_part_costs_the_others_nothing(
    recorder: Recorder, toy_copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def at_fault(*_: object) -> None:
        raise ZeroDivisionError("division by zero")

    whole = recorder.parts["alpha"]
    for name in ("compute", "draw", "depends"):
        recorder.parts["alpha"] = replace(whole, **{name: at_fault})
        found = validate_run(toy_copy, options=Options(bootstrap=50))
        assert [(x.part, x.status) for x in found[:1]] == [("alpha", "failed")], name
        assert found[0].reason == "ZeroDivisionError: division by zero"
        assert found[1].status in ("done", "kept")
    told = CliRunner().invoke(app, ["validate", str(toy_copy)])
    assert told.exit_code == 1
    assert "alpha: failed  ZeroDivisionError" in told.stderr
    assert "beta: done" in told.stderr


def test_a_file_that_an_option_names_is_what_is_in_it(
    recorder: Recorder, toy_copy: Path, tmp_path: Path
) -> None:
    recorder.parts["alpha"] = replace(recorder.parts["alpha"], options=("coarse",))

    def status(path: Path) -> str:
        return validate_run(toy_copy, ["alpha"], Options(coarse=str(path)))[0].status

    one, other = tmp_path / "one.json", tmp_path / "other.json"
    one.write_text('{"cat": "animal"}')
    other.write_text('{"cat": "animal"}')
    assert status(one) == "done"
    assert status(one) == status(other) == "kept"
    one.write_text('{"cat": "pet"}')
    assert status(one) == "done"
    assert status(other) == "done"


def test_the_command_tells_and_its_exit_code_too(recorder: Recorder, toy_copy: Path) -> None:
    def call(*arguments: object) -> object:
        return CliRunner().invoke(app, ["validate", *map(str, arguments)])

    done = call(toy_copy)
    assert done.exit_code == 0, done.stderr
    assert done.stdout == f"{toy_copy}/validation\n"
    for expected in ("alpha: done", "a finding", "note: a note", "figures/alpha.svg"):
        assert expected in done.stderr
    machine = json.loads(call(toy_copy, "beta", "--json").stdout)
    assert [(x["part"], x["status"]) for x in machine["parts"]] == [("beta", "kept")]
    recorder.fails = True
    failed = call(toy_copy, "--bootstrap", 50)
    assert failed.exit_code == 1
    assert "alpha: failed  nothing to see" in failed.stderr
    for arguments, message in (
        ((), "give a run folder, or --ground-truth"),
        ((toy_copy, "--ground-truth"), "--ground-truth takes no run"),
        ((toy_copy, "--top-k", 5), "--top-k with a run; expected with --ground-truth only"),
        ((toy_copy, "--null-channels", 3), "null_channels is too small; got 3"),
        (("--ground-truth", "--null-channels", 9), "--null-channels with --ground-truth"),
    ):
        refused = call(*arguments)
        assert refused.exit_code == 2, refused.stderr
        assert message in refused.stderr


def test_no_run_and_no_such_part(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError):
        validate_run(tmp_path)
    with pytest.raises(InputError, match="unknown part of the validation; got 'k-hut'.*k-hat"):
        validate_run(tmp_path, ["k-hut"])


def test_every_part_is_named_as_it_is_listed() -> None:
    for name in registry.NAMES:
        part = registry.load(name)
        assert part.name == name
        assert set(part.options) <= set(Options.__dataclass_fields__)


def test_csv_has_no_binary_columns() -> None:
    assert flat(pa.table({"a": [1], "b": [b"x"]})).column_names == ["a"]
