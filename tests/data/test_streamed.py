"""Iterable data sets of torch."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from PIL import Image
from torch.utils.data import IterableDataset

from psi_engine.data import open_source
from psi_engine.errors import DataError
from tests.data.pictures import SMALL, encoded, picture, read


class Stream(IterableDataset[Any]):
    """Items in order; says how often it was started and how many items it gave."""

    def __init__(self, *items: Any) -> None:
        self.items = items
        self.starts = self.given = 0

    def __iter__(self) -> Iterator[Any]:
        self.starts += 1
        for item in self.items:
            self.given += 1
            yield item


class Endless(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        seed = 0
        while True:
            yield picture(seed)
            seed += 1


class Shuffled(Stream):
    """Another order with every start."""

    def __iter__(self) -> Iterator[Any]:
        self.starts += 1
        turn = self.starts % len(self.items)
        return iter(self.items[turn:] + self.items[:turn])


class Shrinking(Stream):
    def __iter__(self) -> Iterator[Any]:
        self.starts += 1
        return iter(self.items[: len(self.items) - self.starts])


class Failing(Stream):
    def __iter__(self) -> Iterator[Any]:
        yield from self.items
        raise KeyError("shard 7")


def test_items_are_numbered_as_they_come() -> None:
    reports: list[tuple[str, int, int]] = []
    stream = Stream(*((picture(i), i % 3 if i else -4) for i in range(7)))
    source = open_source(stream, progress=lambda *report: reports.append(report))
    assert reports == [("counting images", i, i) for i in range(1, 8)]
    assert list(source.keys) == [str(i) for i in range(7)]
    assert source.labels is not None
    assert source.labels.tolist() == [-1, 1, 2, 0, 1, 2, 0]
    ids, views, skipped = read(source, batch_size=3)
    assert ids.tolist() == list(range(7))
    assert not skipped
    assert torch.equal(views, torch.stack([SMALL.view(picture(i)) for i in range(7)]))
    assert (stream.starts, stream.given) == (2, 14)


def test_resume_passes_over_what_is_done() -> None:
    stream = Stream(*(picture(i) for i in range(9)))
    source = open_source(stream)
    assert source.labels is None
    ids, views, _ = read(source, indices=torch.tensor([4, 5, 8]))
    assert ids.tolist() == [4, 5, 8]
    assert torch.equal(views[2], SMALL.view(picture(8)))
    assert stream.starts == 2
    assert torch.equal(source.view(1, SMALL), SMALL.view(picture(1)))  # back: from the start
    assert (stream.starts, stream.given) == (3, 9 + 9 + 2)
    with pytest.raises(IndexError):
        source.item(9)


def test_the_first_images_of_an_endless_stream() -> None:
    source = open_source(Endless(), max_images=5)
    assert len(source) == 5
    assert torch.equal(read(source)[1][4], SMALL.view(picture(4)))


def test_an_image_of_a_stream_that_cannot_be_decoded_is_skipped() -> None:
    def items() -> list[Any]:
        broken = Image.open(io.BytesIO(encoded(picture(1), "PNG")[:150]))
        return [(picture(0), 1), (broken, 0), (picture(2), None)]

    source = open_source(Stream(*items()))
    assert source.labels is not None
    assert source.labels.tolist() == [1, 0, -1]
    ids, _, skipped = read(source, max_skipped=0.5)
    assert ids.tolist() == [0, 2]
    assert "truncated" in skipped[1]


def test_tensors_of_a_stream() -> None:
    x = torch.randn(4, 3, 5, 7)
    source = open_source(Stream(*x))
    assert torch.equal(read(source)[1], x)
    again = open_source(Stream(*x.clone()))
    assert again.fingerprint == source.fingerprint
    x[3, 0, 0, 0] += 1
    assert open_source(Stream(*x)).fingerprint != source.fingerprint
    assert open_source(Stream(*x[:3])).fingerprint != open_source(Stream(*x)).fingerprint


@pytest.mark.parametrize(
    ("stream", "message"),
    [
        (Shuffled(*map(picture, range(4))), "the same each time .*; got another item at place 0"),
        (Shrinking(*map(picture, range(4))), "not the same each time .*; got its end at place 2"),
    ],
)
def test_a_stream_of_another_order_is_noticed(stream: Stream, message: str) -> None:
    source = open_source(stream)
    with pytest.raises(DataError, match=message):
        read(source, batch_size=1)


@pytest.mark.parametrize(
    ("stream", "message"),
    [
        (Stream(), "is empty"),
        (Stream({"image": picture(0)}), "item 0 of .* is not an image; got dict"),
        (Failing(picture(0)), "raised an error at item 1; got KeyError: 'shard 7'; let the data"),
    ],
)
def test_bad_streams(stream: Stream, message: str) -> None:
    with pytest.raises(DataError, match=message):
        open_source(stream)


def test_a_stream_that_can_be_read_once() -> None:
    class Once(Stream):
        def __iter__(self) -> Once:
            return self

        def __next__(self) -> Any:
            raise StopIteration

    with pytest.raises(DataError, match="can be read only once"):
        open_source(Once())


def test_a_stream_stays_in_one_process() -> None:
    source = open_source(Stream(*map(picture, range(3))))
    with pytest.raises(DataError, match="sent to worker .*only one process can.*use workers=0"):
        read(source, workers=1)
