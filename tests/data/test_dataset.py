"""Data sets of torch."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import Dataset, IterableDataset, TensorDataset

from psi_engine.data import open_source
from psi_engine.errors import DataError
from tests.data.pictures import SMALL, Listed, picture, read


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


def test_fingerprint_of_a_data_set_sees_its_labels() -> None:
    seen = set()
    for labels in ([0] * 40, [0] * 17 + [1] + [0] * 22):
        dataset = Listed(*[picture(i) for i in range(40)])
        dataset.targets = labels  # type: ignore[attr-defined]
        seen.add(open_source(dataset).fingerprint)
    for label in (0, 1):
        seen.add(open_source(Listed((picture(0), label))).fingerprint)
    assert len(seen) == 4


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        (Listed(), "is empty"),
        (Listed({"image": picture(0)}), "item 0 of .* is not an image; got dict"),
        (Listed(np.zeros((4, 4, 3))), "got ndarray; expected a PIL image or a torch tensor"),
        (42, "not a collection of images; got builtins.int"),
    ],
)
def test_bad_data_sets(dataset: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        open_source(dataset)


def test_tensors_of_different_shapes_cannot_be_stacked() -> None:
    source = open_source(Listed(torch.zeros(3, 4, 4), torch.zeros(3, 4, 5)))
    with pytest.raises(DataError, match=r"float32 \(3, 4, 4\) at 0, float32 \(3, 4, 5\) at 1"):
        read(source)
