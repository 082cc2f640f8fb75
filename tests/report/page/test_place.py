"""A report replaces a report, and never anything else."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from psi_engine.artifacts import Run
from psi_engine.errors import RunFolderError
from psi_engine.report.page.place import read_record, refuse_foreign, replacing, write_record
from psi_engine.report_run import report


def make(out: Path, text: str = "page") -> None:
    """Write the least that counts as a report."""
    with replacing(out) as folder:
        (folder / "sprites").mkdir()
        (folder / "index.html").write_text(text)
        (folder / "sprites/7.webp").write_bytes(b"sheet")
        write_record(folder, "key", 9, [])


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.mark.parametrize(
    "content",
    [
        "{}",
        "[]",
        "not json",
        '{"key": 1, "size": 2, "notes": [], "files": ["thesis.txt"]}',
        '{"made_by": "me", "key": 1, "size": 2, "notes": [], "files": ["thesis.txt"]}',
    ],
)
def test_a_file_of_the_same_name_is_no_report(tmp_path: Path, content: str) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/report.json").write_text(content)
    (tmp_path / "mine/thesis.txt").write_text("all of it")
    with pytest.raises(RunFolderError, match="something else than a report"):
        make(tmp_path / "mine")
    assert names(tmp_path / "mine") == {"report.json", "thesis.txt"}
    assert names(tmp_path) == {"mine"}


@pytest.mark.parametrize("name", ["thesis.txt", "data/notes.js", "sprites/cat.webp", "hosts/a"])
def test_files_of_others_in_a_report_keep_it_from_being_replaced(tmp_path: Path, name: str) -> None:
    make(tmp_path / "out")
    (tmp_path / "out" / name).parent.mkdir(exist_ok=True)
    (tmp_path / "out" / name).write_text("mine")
    with pytest.raises(RunFolderError, match=f"do not belong to it.*(?s:.*){name}"):
        make(tmp_path / "out", "another")
    assert (tmp_path / "out" / name).read_text() == "mine"
    assert (tmp_path / "out/index.html").read_text() == "page"


def test_a_report_is_replaced_whatever_is_missing_and_wherever_one_looked(tmp_path: Path) -> None:
    make(tmp_path / "out")
    (tmp_path / "out/index.html").unlink()
    (tmp_path / "out/sprites/.DS_Store").write_text("of a file browser")
    make(tmp_path / "out", "another")
    assert names(tmp_path / "out") == {"index.html", "report.json", "sprites"}
    record = read_record(tmp_path / "out")
    assert record is not None
    assert record["files"] == ["index.html", "report.json"]  # sheets go by their names


def test_what_came_while_it_was_made_stays(tmp_path: Path) -> None:
    make(tmp_path / "out")
    with pytest.raises(RunFolderError, match="do not belong"), replacing(tmp_path / "out"):
        (tmp_path / "out/late.txt").write_text("mine")
    assert (tmp_path / "out/late.txt").is_file()
    assert names(tmp_path) == {"out"}


def test_the_old_one_comes_back_where_the_new_one_cannot_be_put(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(tmp_path / "out")
    rename = Path.replace

    def refused(self: Path, target: Path) -> Path:
        if self.name == ".out.part":
            raise PermissionError("refused")
        return rename(self, target)

    monkeypatch.setattr(Path, "replace", refused)
    with pytest.raises(PermissionError):
        make(tmp_path / "out", "another")
    assert (tmp_path / "out/index.html").read_text() == "page"
    assert names(tmp_path) == {"out"}


def test_what_a_killed_process_moved_away_is_put_back_first(tmp_path: Path) -> None:
    make(tmp_path / "out")
    (tmp_path / "out").rename(tmp_path / ".out.old")
    with pytest.raises(ZeroDivisionError), replacing(tmp_path / "out"):
        _ = 1 / 0
    assert (tmp_path / "out/index.html").read_text() == "page"
    assert names(tmp_path) == {"out"}


def test_links_are_followed_and_links_within_are_not_ours(tmp_path: Path) -> None:
    (tmp_path / "held").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "held")
    make(tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "held/index.html").is_file()
    (tmp_path / "held/more").symlink_to(tmp_path)
    with pytest.raises(RunFolderError, match="do not belong"):
        refuse_foreign(tmp_path / "link")


@pytest.mark.parametrize("out", [".", "..", "/"])
def test_folders_that_cannot_be_renamed_are_refused_before_any_work(
    toy_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, out: str
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr("psi_engine.report_run.draw_run", lambda *_: pytest.fail("worked"))
    expected = "replaced as a whole" if out == "." else "replaced as a whole|something else"
    with pytest.raises(RunFolderError, match=expected):
        report(toy_run.path, Path(out))
    assert (tmp_path / "here").is_dir()


def test_the_report_one_stands_in_is_kept_while_it_is_true(
    toy_run: Run, toy_report: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(toy_report)
    assert report(toy_run.path, Path()).kept
    assert json.loads((toy_report / "report.json").read_text())["made_by"] == "psi-engine report"
