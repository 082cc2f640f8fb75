"""Sources of every layout, views against PIL and torchvision, batches against one another."""

from __future__ import annotations

import io
import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset, TensorDataset
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms._presets import ImageClassification

from psi_engine.data import CorruptImage, ImageSource, Preprocess, batches, open_source
from psi_engine.errors import CorruptDataError, DataError, InputError

SMALL = Preprocess(image_size=8, resize=10)


def picture(seed: int, size: tuple[int, int] = (12, 10), mode: str = "RGB") -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


def encoded(image: Image.Image, kind: str = "PNG") -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind)
    return stream.getvalue()


def save(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture(seed).save(path)


def read(source: ImageSource, batch_size: int = 4, workers: int = 0, **options: Any):
    skipped: dict[int, str] = {}
    found = list(
        batches(source, SMALL, batch_size=batch_size, workers=workers, skipped=skipped, **options)
    )
    ids = torch.cat([b.image_ids for b in found])
    return ids, torch.cat([b.views for b in found]), skipped


# ---------------------------------------------------------------------------------- preprocess


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize(
    ("size", "mode", "resize", "side"),
    [
        ((64, 64), "RGB", 224, 224),
        ((64, 64), "RGB", 232, 224),
        ((97, 41), "RGB", 33, 32),
        ((41, 97), "RGB", 33, 32),
        ((300, 200), "L", 51, 50),
        ((3, 50), "RGB", 7, 7),
        ((40, 30), "RGBA", 20, 15),
        ((32, 32), "CMYK", 32, 32),
        ((31, 48), "P", 31, 30),
    ],
)
def test_views_and_normalisation_equal_torchvisions(
    size: tuple[int, int], mode: str, resize: int, side: int, interpolation: Any
) -> None:
    image = picture(0, size, mode)
    ours = Preprocess(image_size=side, resize=resize, interpolation=interpolation)
    theirs = ImageClassification(
        crop_size=side, resize_size=resize, interpolation=InterpolationMode(interpolation)
    )
    view = ours.view(image)
    assert view.dtype == torch.uint8
    assert view.is_contiguous()
    assert torch.equal(ours.normalise(view[None])[0], theirs(image.convert("RGB")))


def test_view_is_what_pil_gives() -> None:
    image = picture(1, (30, 20))
    # Shorter side 20 → 12, longer 12 · 30 / 20 = 18; a crop of 9 starts at 4 (4.5) and 2 (1.5).
    expected = image.resize((18, 12), Image.Resampling.BICUBIC).crop((4, 2, 13, 11))
    view = Preprocess(image_size=9, resize=12, interpolation="bicubic").view(image)
    assert np.array_equal(view.permute(1, 2, 0).numpy(), np.asarray(expected))


def test_squash_gives_up_the_aspect_ratio() -> None:
    image = picture(2, (30, 20))
    view = Preprocess(image_size=12, resize=12, squash=True).view(image)
    expected = image.resize((12, 12), Image.Resampling.BILINEAR)
    assert np.array_equal(view.permute(1, 2, 0).numpy(), np.asarray(expected))


def test_normalise_takes_floats_in_unit_range_and_leaves_its_input() -> None:
    views = torch.arange(2 * 3 * 4 * 4, dtype=torch.uint8).reshape(2, 3, 4, 4)
    floats = views.float().div(255)
    before = floats.clone()
    ours = Preprocess(image_size=4, resize=4, mean=(0.1, 0.2, 0.3), std=(0.5, 1.0, 2.0))
    assert torch.equal(ours.normalise(views), ours.normalise(floats))
    assert torch.equal(floats, before)
    expected = v2.functional.normalize(before, [0.1, 0.2, 0.3], [0.5, 1.0, 2.0])
    assert torch.equal(ours.normalise(floats), expected)


def test_transparent_palette_images_decode_without_a_warning(tmp_path: Path) -> None:
    image = picture(3).quantize(8)
    image.save(tmp_path / "a.png", transparency=bytes([0, 128, 255]))
    view = open_source(tmp_path).view(0, SMALL)
    with Image.open(tmp_path / "a.png") as stored:
        expected = SMALL.view(stored.convert("RGBA").convert("RGB"))
    assert torch.equal(view, expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_size": 0, "resize": 8}, "image_size is too small; got 0"),
        ({"image_size": 9, "resize": 8}, "resize is smaller than image_size; got 8 < 9"),
        ({"image_size": 8, "resize": 8, "interpolation": "nearest"}, "unknown interpolation"),
        ({"image_size": 8, "resize": 8, "std": (0.0, 1.0, 1.0)}, "bad normalisation"),
    ],
)
def test_bad_preprocess(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Preprocess(**options)


# ------------------------------------------------------------------------------------- folders


def test_flat_folder(tmp_path: Path) -> None:
    for seed, name in enumerate(["b.png", "a.JPG", "c.webp"]):
        save(tmp_path / name, seed)
    (tmp_path / "notes.txt").write_text("not an image")
    (tmp_path / "._a.png").write_bytes(b"what macOS leaves behind")
    source = open_source(tmp_path)
    assert list(source.keys) == ["a.JPG", "b.png", "c.webp"]
    assert source.labels is None
    assert source.class_names is None
    assert torch.equal(source.view(1, SMALL), SMALL.view(picture(0)))
    assert len(open_source(str(tmp_path), max_images=2)) == 2
    assert len(open_source(tmp_path, max_images=9)) == 3
    with pytest.raises(IndexError):
        source.view(3, SMALL)


def test_one_folder_per_class(tmp_path: Path) -> None:
    # "a-b/…" sorts before "a/…" as text, after it as path parts, which is what classes follow.
    for seed, name in enumerate(["a-b/1.png", "a/deep/2.png", "a/10.png", "c/0.png"]):
        save(tmp_path / name, seed)
    (tmp_path / "empty").mkdir()
    source = open_source(tmp_path)
    assert list(source.keys) == ["a/10.png", "a/deep/2.png", "a-b/1.png", "c/0.png"]
    assert source.labels is not None
    assert source.labels.tolist() == [0, 0, 1, 2]
    assert source.labels.dtype == torch.int64
    assert source.class_names == ("a", "a-b", "c")


def test_a_folder_of_splits_stands_for_train(tmp_path: Path) -> None:
    save(tmp_path / "train/cat/1.png", 1)
    save(tmp_path / "val/cat/2.png", 2)
    assert list(open_source(tmp_path).keys) == ["cat/1.png"]
    assert list(open_source(tmp_path / "val").keys) == ["cat/2.png"]


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """A folder in Tiny-ImageNet's layout: 2 classes × 2 images, 2 val images."""
    for wnid, seed in (("n02", 0), ("n01", 10)):
        for i in range(2):
            save(tmp_path / f"train/{wnid}/images/{wnid}_{i}.JPEG", seed + i)
        (tmp_path / f"train/{wnid}/{wnid}_boxes.txt").write_text("")
    for i in range(2):
        save(tmp_path / f"val/images/val_{i}.JPEG", 20 + i)
    (tmp_path / "val/val_annotations.txt").write_text(
        "val_0.JPEG\tn02\t0\t0\t9\t9\nval_1.JPEG\tn01\t0\t0\t9\t9\n"
    )
    save(tmp_path / "test/images/test_0.JPEG", 30)
    (tmp_path / "wnids.txt").write_text("n02\nn01\n")
    (tmp_path / "words.txt").write_text("n01\tgoldfish, Carassius auratus\nn02\tnewt\nn03\tfrog\n")
    return tmp_path


def test_tiny_imagenet_layout(tiny: Path) -> None:
    train = open_source(tiny)
    assert list(train.keys)[:2] == ["n01/images/n01_0.JPEG", "n01/images/n01_1.JPEG"]
    assert train.labels is not None
    assert train.labels.tolist() == [0, 0, 1, 1]
    assert train.class_names == ("goldfish", "newt")
    val = open_source(tiny / "val")
    assert list(val.keys) == ["images/val_0.JPEG", "images/val_1.JPEG"]
    assert val.labels is not None
    assert val.labels.tolist() == [1, 0]
    assert val.class_names == train.class_names
    test = open_source(tiny / "test")
    assert test.labels is None


def test_broken_val_annotations(tiny: Path) -> None:
    (tiny / "val/val_annotations.txt").write_text("val_0.JPEG n02\n")
    with pytest.raises(DataError, match="not in Tiny-ImageNet's form; got line 1"):
        open_source(tiny / "val")


def test_classes_json_names_class_folders(tiny: Path) -> None:
    rows = [{"label": 1, "wnid": "n02", "name": "eft"}, {"label": 0, "wnid": "n01", "name": "carp"}]
    (tiny / "classes.json").write_text(json.dumps(rows))
    assert open_source(tiny).class_names == ("carp", "eft")
    (tiny / "classes.json").write_text(json.dumps([{"label": 3, "name": "carp"}]))
    with pytest.raises(DataError, match=r"does not list classes; got labels that are not 0, 1"):
        open_source(tiny)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: None, r"the folder .* is empty; give a folder with images"),
        (lambda p: (p / "a.txt").write_text("x"), r"no images in .*got 1 files ending in \.txt"),
        (lambda p: (save(p / "a.png", 0), save(p / "b/c.png", 0)), "both beside and inside"),
        (lambda p: (p / "a.parquet").write_bytes(b"PAR0"), "cannot be read as Parquet"),
    ],
)
def test_bad_folders(tmp_path: Path, make: Callable[[Path], Any], message: str) -> None:
    make(tmp_path)
    with pytest.raises(DataError, match=message):
        open_source(tmp_path)


def test_bad_paths(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file or folder: .*nowhere; expected Parquet"):
        open_source(tmp_path / "nowhere")
    save(tmp_path / "a.png", 0)
    with pytest.raises(DataError, match="not a collection of images; got one image"):
        open_source(tmp_path / "a.png")
    (tmp_path / "a.zip").write_bytes(b"")
    with pytest.raises(DataError, match=r"got a \.zip file"):
        open_source(tmp_path / "a.zip")
    with pytest.raises(DataError, match="max_images is too small; got 0"):
        open_source(tmp_path, max_images=0)


def test_a_source_is_handed_back(tmp_path: Path) -> None:
    save(tmp_path / "a.png", 0)
    save(tmp_path / "b.png", 0)
    source = open_source(tmp_path)
    assert open_source(source) is source
    cut = open_source(source, max_images=1)
    assert list(cut.keys) == ["a.png"]
    assert cut.fingerprint != source.fingerprint


def test_fewer_images_are_spread_over_all_classes(tmp_path: Path) -> None:
    for label in range(4):
        for number in range(5):
            save(tmp_path / f"class{label}" / f"{number}.png", 5 * label + number)
    whole = open_source(tmp_path)
    cut = open_source(tmp_path, max_images=8)
    places = [0, 2, 5, 7, 10, 12, 15, 17]
    assert list(cut.keys) == [whole.keys[place] for place in places]
    assert cut.labels is not None
    assert cut.labels.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert cut.class_names == whole.class_names
    assert torch.equal(cut.view(5, SMALL), whole.view(12, SMALL))


def test_fingerprint_of_a_folder_sees_every_change(tmp_path: Path) -> None:
    for seed, name in enumerate(["x/1.png", "x/2.png", "y/3.png"]):
        save(tmp_path / "data" / name, seed)
    folder = tmp_path / "data"
    seen = [open_source(folder).fingerprint]
    assert open_source(folder, max_images=3).fingerprint == seen[0]
    shutil.copytree(folder, tmp_path / "elsewhere")
    assert open_source(tmp_path / "elsewhere").fingerprint == seen[0]
    seen.append(open_source(folder, max_images=2).fingerprint)
    (folder / "x/2.png").rename(folder / "x/4.png")
    seen.append(open_source(folder).fingerprint)
    (folder / "x/4.png").write_bytes(b"shorter")
    seen.append(open_source(folder).fingerprint)
    (folder / "y").rename(folder / "z")
    seen.append(open_source(folder).fingerprint)
    assert len(set(seen)) == len(seen)


# ------------------------------------------------------------------------------------- parquet


def image_array(contents: list[bytes | None], paths: list[str | None] | None = None) -> pa.Array:
    paths = paths or [None] * len(contents)
    rows = [{"bytes": b, "path": p} for b, p in zip(contents, paths, strict=True)]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    return pa.array(rows, type=kind)


def write(
    path: Path,
    seeds: range,
    labels: list[Any] | None = None,
    names: list[str] | None = None,
    paths: list[str | None] | None = None,
    **options: Any,
) -> None:
    columns = {"image": image_array([encoded(picture(s)) for s in seeds], paths)}
    features: dict[str, Any] = {"image": {"_type": "Image"}}
    if labels is not None:
        columns["label"] = pa.array(labels)
    if names is not None:
        features["label"] = {"_type": "ClassLabel", "names": names}
    table = pa.table(columns)
    if names is not None:
        note = json.dumps({"info": {"features": features}})
        table = table.replace_schema_metadata({"huggingface": note})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, **options)


def test_parquet_shards_are_read_row_group_by_row_group(tmp_path: Path) -> None:
    write(tmp_path / "train-1.parquet", range(7, 12), [0, 1, 2, -1, 1], list("abc"))
    write(
        tmp_path / "train-0.parquet", range(7), [2, 1, 0, 2, 1, 0, 0], list("abc"),
        paths=["p0.png", None, "", "p3.png", None, None, None], row_group_size=3,
    )  # fmt: skip
    source = open_source(tmp_path)
    assert len(source) == 12
    assert list(source.keys)[:5] == [
        "p0.png", "train-0.parquet#1", "train-0.parquet#2", "p3.png", "train-0.parquet#4",
    ]  # fmt: skip
    assert source.keys[7] == "train-1.parquet#0"
    assert source.class_names == ("a", "b", "c")
    assert source.labels is not None
    assert source.labels.tolist() == [2, 1, 0, 2, 1, 0, 0, 0, 1, 2, -1, 1]
    for index in (11, 0, 6, 3, 2, 7):
        assert torch.equal(source.view(index, SMALL), SMALL.view(picture(index)))
    cut = open_source(tmp_path, max_images=5)
    assert cut.labels is not None
    assert cut.labels.tolist() == [2, 0, 1, 0, 2]
    assert list(cut.keys) == [source.keys[place] for place in (0, 2, 4, 7, 9)]
    with pytest.raises(IndexError):
        cut.view(5, SMALL)


def test_row_groups_beyond_the_cache_are_dropped_and_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("psi_engine.data.parquet.CACHE_BYTES", 1)
    write(tmp_path / "a.parquet", range(6), row_group_size=2)
    source = open_source(tmp_path)
    for index in (0, 5, 1, 2, 4):
        assert torch.equal(source.view(index, SMALL), SMALL.view(picture(index)))
        assert len(source._cache) == 1  # type: ignore[attr-defined]


def test_parquet_labels_of_other_kinds(tmp_path: Path) -> None:
    file = tmp_path / "a.parquet"
    write(file, range(4), ["newt", None, "carp", "newt"])
    source = open_source(file)
    assert source.labels is not None
    assert source.labels.tolist() == [1, -1, 0, 1]
    assert source.class_names == ("carp", "newt")
    write(file, range(3), [1, None, 0])
    (tmp_path / "classes.json").write_text('["carp", "newt"]')
    source = open_source(file)
    assert source.labels is not None
    assert source.labels.tolist() == [1, -1, 0]
    assert source.class_names == ("carp", "newt")
    write(file, range(2))
    assert open_source(file).labels is None
    write(file, range(2), [0.5, 1.5])
    with pytest.raises(DataError, match="strange type; got column 'label': double"):
        open_source(file)
    write(file, range(2), [0, 2])
    with pytest.raises(DataError, match="have no name; got label 2 with 2 class names"):
        open_source(file)


def test_parquet_columns_of_other_kinds(tmp_path: Path) -> None:
    file = tmp_path / "a.parquet"
    pq.write_table(pa.table({"photo": [encoded(picture(0))], "id": [3]}), file)
    assert torch.equal(open_source(file).view(0, SMALL), SMALL.view(picture(0)))
    pq.write_table(pa.table({"id": [3], "text": ["x"]}), file)
    with pytest.raises(DataError, match="has no image column; got columns id: int64, text: string"):
        open_source(file)
    pq.write_table(pa.table({"left": [b""], "right": [b""]}), file)
    with pytest.raises(DataError, match="has several image columns"):
        open_source(file)
    pq.write_table(pa.table({"image": pa.array([], pa.binary())}), file)
    with pytest.raises(DataError, match="no rows in"):
        open_source(file)


def test_parquet_images_kept_as_files(tmp_path: Path) -> None:
    save(tmp_path / "files/a.png", 4)
    table = pa.table({"image": image_array([None, None, None], ["files/a.png", "gone.png", None])})
    pq.write_table(table, tmp_path / "a.parquet")
    source = open_source(tmp_path / "a.parquet")
    assert torch.equal(source.view(0, SMALL), SMALL.view(picture(4)))
    with pytest.raises(CorruptImage, match="no bytes in the row"):
        source.view(1, SMALL)
    with pytest.raises(CorruptImage, match="the row holds no image"):
        source.view(2, SMALL)


def test_unlike_shards_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", range(2), [0, 1])
    write(tmp_path / "b.parquet", range(2), ["x", "y"])
    with pytest.raises(DataError, match=r"b\.parquet does not match the first shard"):
        open_source(tmp_path)


def test_fingerprint_of_parquet_sees_every_change(tmp_path: Path) -> None:
    file = tmp_path / "a.parquet"
    seen = []
    for start, labels in ((0, [0, 1, 0, 1]), (1, [0, 1, 0, 1]), (0, [0, 0, 0, 0])):
        write(file, range(start, start + 4), labels)
        seen.append(open_source(file).fingerprint)
        seen.append(open_source(file, max_images=2).fingerprint)
    file.rename(tmp_path / "b.parquet")
    seen.append(open_source(tmp_path / "b.parquet").fingerprint)
    assert len(set(seen)) == len(seen)
    assert open_source(tmp_path / "b.parquet", max_images=99).fingerprint == seen[-1]


def test_real_parquet(shared: Path) -> None:
    folder = shared / "data" / "tiny-imagenet"
    source = open_source(folder)
    assert len(source) == 20_000
    listed = json.loads((folder / "classes.json").read_text())
    assert source.class_names == tuple(row["name"] for row in listed)
    assert source.labels is not None
    assert int(source.labels.min()) >= 0
    second = pq.read_table(folder / "train-00001-of-00004.parquet").slice(0, 1).to_pylist()[0]
    assert source.keys[5000] == second["image"]["path"]
    assert int(source.labels[5000]) == second["label"]
    expected = Image.open(io.BytesIO(second["image"]["bytes"])).convert("RGB")
    view = source.view(5000, Preprocess(image_size=224, resize=224))
    resized = np.asarray(expected.resize((224, 224), Image.Resampling.BILINEAR))
    assert np.array_equal(view.permute(1, 2, 0).numpy(), resized)


# ------------------------------------------------------------------------------ torch data sets


class Pictures(Dataset[Any]):
    """PIL images with labels; one of them may be broken."""

    classes = ("even", "odd")

    def __init__(self, broken: int | None = None) -> None:
        self.broken = broken

    def __len__(self) -> int:
        return 12

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        if index == self.broken:
            raise OSError("image file is truncated")
        return picture(index), index % 2


class Listed(Dataset[Any]):
    """Any items."""

    def __init__(self, *items: Any) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Any:
        return self.items[index]


class Streamed(IterableDataset[Any]):
    def __iter__(self) -> Any:
        yield picture(0)


def test_data_set_of_pil_images() -> None:
    source = open_source(Pictures(broken=3))
    assert len(source) == 12
    assert source.class_names == ("even", "odd")
    assert source.labels is not None
    assert source.labels.tolist() == [0, 1, 0, -1, 0, 1, 0, 1, 0, 1, 0, 1]
    ids, views, skipped = read(source)
    assert ids.tolist() == [0, 1, 2, 4, 5, 6, 7, 8, 9, 10, 11]
    assert skipped == {3: "image file is truncated"}
    assert torch.equal(views[3], SMALL.view(picture(4)))
    assert views.dtype == torch.uint8


def test_data_set_of_tensors_goes_to_the_model_as_it_is() -> None:
    x = torch.randn(6, 3, 5, 7)
    source = open_source(TensorDataset(x, torch.tensor([3, 1, -5, 0, 2, 2])))
    ids, views, _ = read(source)
    assert torch.equal(views, x)
    assert ids.tolist() == list(range(6))
    assert source.labels is not None
    assert source.labels.tolist() == [3, 1, -1, 0, 2, 2]
    assert open_source(TensorDataset(x)).labels is None
    counts = torch.arange(48, dtype=torch.uint8).reshape(4, 3, 2, 2)
    _, views, _ = read(open_source(TensorDataset(counts)))
    assert views.dtype == torch.float32
    assert torch.equal(views, counts.float())


def test_declared_labels_are_taken_without_reading_items() -> None:
    dataset = Listed(*[picture(i) for i in range(4)])
    dataset.targets = [1, 0, 1, 1]  # type: ignore[attr-defined]
    labels = open_source(dataset).labels
    assert labels is not None
    assert labels.tolist() == [1, 0, 1, 1]


def test_fingerprint_of_a_data_set_sees_its_content() -> None:
    x = torch.randn(8, 3, 4, 4)
    first = open_source(TensorDataset(x)).fingerprint
    assert open_source(TensorDataset(x.clone())).fingerprint == first
    assert open_source(TensorDataset(x + 1)).fingerprint != first
    assert open_source(TensorDataset(x), max_images=7).fingerprint != first


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        (Streamed(), "iterable data sets have no stable image ids; got .*Streamed"),
        (Listed(), "is empty"),
        (Listed({"image": picture(0)}), "item 0 of .* is not an image; got dict"),
        (Listed(np.zeros((4, 4, 3))), "got ndarray; expected a PIL image or a torch tensor"),
        (42, "iterable data sets have no stable image ids; got builtins.int"),
    ],
)
def test_bad_data_sets(dataset: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        open_source(dataset)


def test_tensors_of_different_shapes_cannot_be_stacked() -> None:
    source = open_source(Listed(torch.zeros(3, 4, 4), torch.zeros(3, 4, 5)))
    with pytest.raises(DataError, match=r"float32 \(3, 4, 4\) at 0, float32 \(3, 4, 5\) at 1"):
        read(source)


# ------------------------------------------------------------------------------------- batches


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """24 images; 5 and 17 are broken, one cut short and one of text."""
    for i in range(24):
        save(tmp_path / f"{i:02d}.png", i)
    (tmp_path / "05.png").write_bytes((tmp_path / "05.png").read_bytes()[:150])
    (tmp_path / "17.png").write_text("not an image")
    return tmp_path


def check_folder(ids: Tensor, views: Tensor, skipped: dict[int, str]) -> None:
    assert ids.tolist() == [i for i in range(24) if i not in (5, 17)]
    assert skipped.keys() == {5, 17}
    assert "truncated" in skipped[5]
    assert skipped[17] == "not an image that PIL can identify"
    expected = torch.stack([SMALL.view(picture(i)) for i in ids.tolist()])
    assert torch.equal(views, expected)


@pytest.mark.parametrize("batch_size", [1, 5, 24, 100])
def test_batch_size_changes_nothing(folder: Path, batch_size: int) -> None:
    check_folder(*read(open_source(folder), batch_size))


def test_workers_change_nothing(folder: Path) -> None:
    check_folder(*read(open_source(folder), batch_size=5, workers=2))


def test_parquet_crosses_to_a_worker(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", range(6), row_group_size=4)
    source = open_source(tmp_path)
    source.view(0, SMALL)  # open readers and cached rows must not travel
    again = pickle.loads(pickle.dumps(source))
    assert again.fingerprint == source.fingerprint
    assert torch.equal(again.view(5, SMALL), source.view(5, SMALL))


def test_a_data_set_that_cannot_be_pickled_is_refused_by_workers() -> None:
    dataset = Listed(*[picture(i) for i in range(4)])
    dataset.transform = lambda x: x  # type: ignore[attr-defined]
    with pytest.raises(DataError, match="cannot be sent to worker processes; got .*use workers=0"):
        read(open_source(dataset), workers=1)


def test_some_images_in_any_order(folder: Path) -> None:
    ids, views, skipped = read(open_source(folder), indices=torch.tensor([9, 2, 23]))
    assert ids.tolist() == [9, 2, 23]
    assert torch.equal(views[2], SMALL.view(picture(23)))
    assert not skipped


def test_too_many_corrupt_images_stop_the_run(folder: Path) -> None:
    (folder / "03.png").write_bytes(b"")
    skipped: dict[int, str] = {}
    with pytest.raises(
        CorruptDataError, match=r"got 3 of 24, the last one 17\.png: .*expected at most 10%"
    ):
        list(batches(open_source(folder), SMALL, batch_size=7, skipped=skipped))
    assert skipped[3] == "the file is empty"
    ids, _, _ = read(open_source(folder), max_skipped=0.2)
    assert len(ids) == 21


def test_a_batch_of_corrupt_images_is_left_out(folder: Path) -> None:
    (folder / "16.png").write_bytes(b"")
    found = list(batches(open_source(folder), SMALL, batch_size=2, skipped={}, max_skipped=0.5))
    assert len(found) == 11
    assert min(len(batch.image_ids) for batch in found) == 1


def test_a_decompression_bomb_is_corrupt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 20)
    save(tmp_path / "a.png", 0)
    with pytest.raises(CorruptImage, match="decompression bomb"):
        open_source(tmp_path).view(0, SMALL)


def test_bad_batch_size(folder: Path) -> None:
    with pytest.raises(DataError, match="batch_size is too small; got 0"):
        read(open_source(folder), batch_size=0)
