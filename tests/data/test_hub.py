"""Data sets of Hugging Face: by name through a stand-in for their library, and saved to disk."""

from __future__ import annotations

import json
import pickle
import sys
import types
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch

from psi_engine.data import CorruptImage, needs_download, open_source
from psi_engine.data.hub import HubName, parse_name
from psi_engine.data.opening import require_download
from psi_engine.errors import DataError
from tests.data.pictures import SMALL, encoded, image_array, picture, read, save

FEATURES = {
    "image": {"_type": "Image"},
    "label": {"_type": "ClassLabel", "names": ["cat", "dog"]},
}


def table_of(contents: list[bytes | None], paths: list[str | None] | None = None) -> pa.Table:
    labels = [i % 2 for i in range(len(contents))]
    table = pa.table({"image": image_array(contents, paths), "label": labels})
    return table.replace_schema_metadata(
        {"huggingface": json.dumps({"info": {"features": FEATURES}})}
    )


class Rows:
    """As much of ``datasets.Dataset`` as is used."""

    def __init__(self, table: pa.Table, decode: bool = True) -> None:
        self.table, self.decode = table, decode
        self.features = types.SimpleNamespace(
            to_dict=lambda: FEATURES, arrow_schema=table.schema.remove_metadata()
        )

    def __len__(self) -> int:
        return self.table.num_rows

    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            return self.table
        assert not self.decode, "decoded by the library"
        return {name: self.table.column(name)[index].as_py() for name in self.table.column_names}

    def select_columns(self, names: list[str]) -> Rows:
        return Rows(self.table.select(names), self.decode)

    def cast_column(self, name: str, kind: Any) -> Rows:
        return Rows(self.table, kind["decode"])

    def with_format(self, kind: str) -> Rows:
        return self


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> types.SimpleNamespace:
    """A stand-in whose ``asked`` lists the calls and whose ``rows`` is what it finds."""
    state = types.SimpleNamespace(asked=[], rows=None)

    def load_dataset(name: str, config: str | None, *, split: str, revision: str | None) -> Any:
        state.asked.append((name, config, split, revision))
        if isinstance(state.rows, Exception):
            raise state.rows
        return Rows(state.rows)

    module = types.ModuleType("datasets")
    module.load_dataset = load_dataset  # type: ignore[attr-defined]
    module.Image = lambda decode: {"decode": decode}  # type: ignore[attr-defined]
    state.caches = tmp_path / "caches"
    module.config = types.SimpleNamespace(HF_DATASETS_CACHE=state.caches)  # type: ignore[attr-defined]
    state.version = "4.0.0"
    monkeypatch.setitem(sys.modules, "datasets", module)
    monkeypatch.setattr("psi_engine.data.hub.version", lambda name: state.version)
    monkeypatch.setattr("psi_engine.data.hub.unreachable_reason", lambda url: None)
    return state


@pytest.mark.parametrize(
    ("spec", "name"),
    [
        ("hf:mnist", HubName("mnist", None, "train", None)),
        ("hf:a/b", HubName("a/b", None, "train", None)),
        ("hf:a/b:test", HubName("a/b", None, "test", None)),
        ("hf:a/b/large", HubName("a/b", None, "train", "large")),
        ("hf:a/b:valid/large", HubName("a/b", None, "valid", "large")),
        ("hf:a/b@1f0a:valid/large", HubName("a/b", "1f0a", "valid", "large")),
        ("hf:a/b@refs/pr/3", HubName("a/b", "refs/pr/3", "train", None)),
        ("hf:a/b:train[:10%]", HubName("a/b", None, "train[:10%]", None)),
        ("hf:./x/y:test", HubName("./x/y", None, "test", None)),
    ],
)
def test_names(spec: str, name: HubName) -> None:
    assert parse_name(spec) == name


@pytest.mark.parametrize("spec", ["hf:", "hf:a@", "hf::test", "hf:a:"])
def test_bad_names(spec: str) -> None:
    with pytest.raises(DataError, match="not the name of a data set; got 'hf:"):
        open_source(spec)


def test_a_data_set_by_name(library: types.SimpleNamespace) -> None:
    contents: list[bytes | None] = [encoded(picture(i)) for i in range(5)]
    contents[3] = None
    library.rows = table_of(contents)
    source = open_source("hf:a/b@v1:valid/large")
    assert library.asked == [("a/b", "large", "valid", "v1")]
    assert source.keys[4] == "a/b:valid#4"
    assert source.class_names == ("cat", "dog")
    assert source.labels is not None
    assert source.labels.tolist() == [0, 1, 0, 1, 0]
    ids, views, skipped = read(source, max_skipped=0.5)
    assert ids.tolist() == [0, 1, 2, 4]
    assert skipped == {3: "the row holds no image"}
    assert torch.equal(views[3], SMALL.view(picture(4)))
    assert open_source("hf:a/b").fingerprint == source.fingerprint
    contents[2] = encoded(picture(9))
    library.rows = table_of(contents)
    assert open_source("hf:a/b").fingerprint != source.fingerprint


def test_what_the_library_says_is_passed_on(library: types.SimpleNamespace) -> None:
    library.rows = ConnectionError("Couldn't reach 'a/b' on the Hub\nmore of it")
    with pytest.raises(
        DataError,
        match=r"hf:a/b cannot be loaded; got ConnectionError: Couldn't reach 'a/b' on the Hub; "
        r"check name.*HF_HUB_OFFLINE=1",
    ):
        open_source("hf:a/b")
    library.rows = table_of([])
    with pytest.raises(DataError, match="no rows in hf:a/b"):
        open_source("hf:a/b")


def test_the_library_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr("psi_engine.data.hub.version", missing)
    assert needs_download("hf:a/b")
    for use in (open_source, require_download):
        with pytest.raises(DataError, match="library datasets, which is not installed; pip inst"):
            use("hf:a/b")


def test_a_library_that_runs_foreign_code_is_refused(library: types.SimpleNamespace) -> None:
    library.rows = table_of([encoded(picture(0))])
    library.version = "3.6.0"
    for use in (open_source, require_download):
        with pytest.raises(DataError, match=r"runs code .*; got 3\.6\.0; expected 4 or later; pip"):
            use("hf:a/b")
    library.version = "11.0.0.dev1"
    assert len(open_source("hf:a/b")) == 1
    assert len(library.asked) == 1


def test_rows_name_files_of_the_caches_alone(
    tmp_path: Path, library: types.SimpleNamespace
) -> None:
    save(library.caches / "downloads/a.png", 3)
    save(tmp_path / "secret.png", 4)
    names = [str(library.caches / "downloads/a.png"), str(tmp_path / "secret.png")]
    library.rows = table_of([None, None], [*names])
    source = open_source("hf:a/b")
    assert torch.equal(source.view(0, SMALL), SMALL.view(picture(3)))
    with pytest.raises(CorruptImage, match="names a file outside"):
        source.item(1)


def save_to_disk(folder: Path, tables: list[pa.Table]) -> Path:
    folder.mkdir(parents=True)
    names = [f"data-{i:05d}-of-{len(tables):05d}.arrow" for i in range(len(tables))]
    for name, table in zip(names, tables, strict=True):
        with (
            pa.OSFile(str(folder / name), "wb") as sink,
            pa.ipc.new_stream(sink, table.schema) as w,
        ):
            w.write_table(table, max_chunksize=2)
    files = [{"filename": name} for name in names]
    (folder / "state.json").write_text(json.dumps({"_data_files": files}))
    return folder


def test_a_saved_data_set_needs_no_library(tmp_path: Path) -> None:
    first = table_of([encoded(picture(i)) for i in range(5)])
    save(tmp_path / "set" / "elsewhere.png", 6)
    (tmp_path / "set").rename(tmp_path / "files")
    folder = save_to_disk(
        tmp_path / "set", [first, table_of([encoded(picture(5)), None], [None, "elsewhere.png"])]
    )
    (tmp_path / "files/elsewhere.png").rename(folder / "elsewhere.png")
    source = open_source(folder)
    assert len(source) == 7
    assert source.keys[6] == "set#6"
    assert source.class_names == ("cat", "dog")
    assert source.labels is not None
    assert source.labels.tolist() == [0, 1, 0, 1, 0, 0, 1]
    expected = torch.stack([SMALL.view(picture(i)) for i in range(7)])
    assert torch.equal(read(source)[1], expected)
    again = pickle.loads(pickle.dumps(source))
    assert torch.equal(again.view(5, SMALL), expected[5])
    named = f"hf:{folder}"
    assert not needs_download(named)
    assert open_source(named).fingerprint == source.fingerprint
    with pytest.raises(IndexError):
        source.item(7)


def test_splits_of_a_saved_data_set(tmp_path: Path) -> None:
    for split, count in (("test", 2), ("train", 3)):
        save_to_disk(tmp_path / split, [table_of([encoded(picture(i)) for i in range(count)])])
    listing = tmp_path / "dataset_dict.json"
    listing.write_text('{"splits": ["test", "train"]}')
    assert len(open_source(tmp_path)) == 3
    assert len(open_source(tmp_path / "test")) == 2
    assert len(open_source(f"hf:{tmp_path}:test")) == 2
    listing.write_text('{"splits": ["test", "other"]}')
    with pytest.raises(DataError, match=r"has several splits; got test, other; name one, such as"):
        open_source(tmp_path)


def test_fingerprint_and_faults_of_a_saved_data_set(tmp_path: Path) -> None:
    seen = []
    for number, seeds in enumerate(([0, 1, 2, 3], [0, 1, 3, 2], [0, 1, 2])):
        table = table_of([encoded(picture(seed)) for seed in seeds])
        seen.append(open_source(save_to_disk(tmp_path / str(number), [table])).fingerprint)
    assert len(set(seen)) == 3
    file = next((tmp_path / "0").glob("*.arrow"))
    file.write_bytes(file.read_bytes()[:400])
    with pytest.raises(DataError, match=r"\.arrow cannot be read as Arrow"):
        open_source(tmp_path / "0")
    (tmp_path / "0" / "state.json").write_text("{")
    with pytest.raises(DataError, match=r"state\.json cannot be read"):
        open_source(tmp_path / "0")
    with pytest.raises(DataError, match="no rows in"):
        open_source(save_to_disk(tmp_path / "3", [table_of([])]))
    for name in ("../2/data-00000-of-00001.arrow", str(file), "gone.arrow"):
        (tmp_path / "3" / "state.json").write_text(
            json.dumps({"_data_files": [{"filename": name}]})
        )
        with pytest.raises(DataError, match=r"names what is no file of .*; got .*\.arrow"):
            open_source(tmp_path / "3")
