"""Data sets through the real library ``datasets``, without a network."""

from __future__ import annotations

import io
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
from PIL import Image

from psi_engine.data import open_source
from psi_engine.data.arrow import ArrowSource
from psi_engine.data.hub import HubSource
from psi_engine.errors import DataError
from tests.data.pictures import SMALL, encoded, picture, read

COUNT = 7


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The library with a cache of its own and no hub."""
    datasets = pytest.importorskip("datasets", reason="the extra hub is not installed")
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # nobody answers there
    monkeypatch.setattr(datasets.config, "HF_ENDPOINT", "http://127.0.0.1:9")
    datasets.disable_progress_bars()
    yield datasets
    datasets.enable_progress_bars()


def jpeg(seed: int) -> bytes:
    """Bytes of which decoders make different pixels."""
    stream = io.BytesIO()
    picture(seed, (24, 20)).save(stream, "JPEG", quality=60)
    return stream.getvalue()


def rows(library: ModuleType, count: int = COUNT, labelled: bool = True):
    columns = {"image": [{"bytes": jpeg(i), "path": None} for i in range(count)]}
    kinds = {"image": library.Image()}
    if labelled:
        columns["label"] = [i % 2 for i in range(count)]
        kinds["label"] = library.ClassLabel(names=["cat", "dog"])
    return library.Dataset.from_dict(columns, features=library.Features(kinds))


def expected(count: int = COUNT) -> torch.Tensor:
    return torch.stack([SMALL.view(Image.open(io.BytesIO(jpeg(i)))) for i in range(count)])


def image_folder(path: Path) -> Path:
    for i in range(COUNT):
        file = path / ("dog" if i >= 4 else "cat") / f"{i}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(jpeg(i))
    return path


def test_what_save_to_disk_writes(library: ModuleType, tmp_path: Path) -> None:
    rows(library).save_to_disk(tmp_path / "one")
    parts = {"train": rows(library), "test": rows(library, 3)}
    library.DatasetDict(parts).save_to_disk(tmp_path / "two")
    for spec, count in (("one", COUNT), ("two", COUNT), ("two:test", 3), ("two:train", COUNT)):
        source = open_source(f"hf:{tmp_path}/{spec}")
        assert isinstance(source, ArrowSource)
        assert torch.equal(read(source)[1], expected(count))
        assert source.labels is not None
        assert source.labels.tolist() == [i % 2 for i in range(count)]
        assert source.class_names == ("cat", "dog")
    assert (
        open_source(f"hf:{tmp_path}/one").fingerprint == open_source(tmp_path / "one").fingerprint
    )


@pytest.mark.parametrize("part", ["one:test", "two:valid", "two:train[:2]", "two:train/large"])
def test_a_part_that_was_not_saved_is_no_other(
    library: ModuleType, tmp_path: Path, part: str
) -> None:
    rows(library).save_to_disk(tmp_path / "one")
    library.DatasetDict({"train": rows(library), "test": rows(library, 3)}).save_to_disk(
        tmp_path / "two"
    )
    with pytest.raises(DataError, match="has no such part; got .*expected one of its splits, tr"):
        open_source(f"hf:{tmp_path}/{part}")


def test_a_folder_of_images(library: ModuleType, tmp_path: Path) -> None:
    folder = image_folder(tmp_path / "pets")
    source = open_source(f"hf:{folder}")
    assert isinstance(source, HubSource)
    assert torch.equal(read(source)[1], expected())
    assert torch.equal(read(source, workers=2)[1], expected())
    assert source.labels is not None
    assert source.labels.tolist() == [0, 0, 0, 0, 1, 1, 1]
    assert source.class_names == ("cat", "dog")
    copied = shutil.copytree(folder, tmp_path / "elsewhere" / "pets")
    assert open_source(f"hf:{copied}").fingerprint == source.fingerprint
    (folder / "cat" / "2.jpg").write_bytes(jpeg(50))
    assert open_source(f"hf:{folder}").fingerprint != source.fingerprint


def test_parquet_with_splits_and_slices(library: ModuleType, tmp_path: Path) -> None:
    folder = tmp_path / "tables"
    folder.mkdir()
    rows(library).to_parquet(folder / "train-00000-of-00001.parquet")
    rows(library, 2).to_parquet(folder / "test-00000-of-00001.parquet")
    for part, count in (("", COUNT), (":train[:3]", 3), (":test", 2)):
        source = open_source(f"hf:{folder}{part}")
        assert torch.equal(read(source)[1], expected(count))
        assert source.labels is not None
        assert len(source.labels) == count
    for part, message in ((":valid", 'Unknown split "valid"'), (":train/big", "'big' not found")):
        with pytest.raises(DataError, match=f"cannot be loaded; got .*{message}"):
            open_source(f"hf:{folder}{part}")


def test_images_without_labels(library: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    rows(library, labelled=False).to_parquet(tmp_path / "set" / "train.parquet")
    source = open_source(f"hf:{tmp_path}/set")
    assert source.labels is None
    assert source.class_names is None
    assert torch.equal(read(source)[1], expected())


def test_every_length_enters_the_fingerprint(library: ModuleType, tmp_path: Path) -> None:
    """Row 101 of 200 is no probe; another image there has another length."""
    found = []
    for number, odd in enumerate((101, 101, 500)):
        seeds = [*range(101), odd, *range(102, 200)]
        images = [{"bytes": encoded(picture(s, (6 + s // 500, 5))), "path": None} for s in seeds]
        kind = library.Features({"image": library.Image()})
        (tmp_path / str(number)).mkdir()
        library.Dataset.from_dict({"image": images}, features=kind).to_parquet(
            tmp_path / str(number) / "train.parquet"
        )
        found.append(open_source(f"hf:{tmp_path}/{number}").fingerprint)
    assert found[0] == found[1] != found[2]


def test_without_a_network_the_cache_is_taken_and_else_one_error_comes_at_once(
    library: ModuleType, tmp_path: Path
) -> None:
    folder = tmp_path / "pets"
    folder.mkdir()
    rows(library).to_parquet(folder / "train.parquet")
    source = open_source(f"hf:{folder}")  # what the library keeps of it …
    (kept,) = (tmp_path / "cache").rglob("*-train.arrow")
    place = tmp_path / "cache" / "someone___pets" / "default" / "0.0.0" / "0123"
    place.parent.mkdir(parents=True)
    shutil.move(kept.parent, place)  # … lies here for a data set of the hub
    (place / kept.name).rename(place / "pets-train.arrow")
    cached = open_source("hf:someone/pets")
    assert isinstance(cached, HubSource)
    assert cached.fingerprint == source.fingerprint
    assert torch.equal(read(cached)[1], expected())
    began = time.perf_counter()
    with pytest.raises(
        DataError,
        match=r"hf:someone/cars is not in the .* cache .*; got 127\.0\.0\.1:9: Connection",
    ):
        open_source("hf:someone/cars")
    assert time.perf_counter() - began < 3
    assert not library.config.HF_HUB_OFFLINE


def test_a_kind_of_data_set_is_none(library: ModuleType) -> None:
    with pytest.raises(DataError, match="imagefolder is a kind of data set, not one.*hf:FOLDER"):
        open_source("hf:imagefolder")
