"""Crops embedded once: killed, torn, on many ranks, on a full disk."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from psi_engine import embedding
from psi_engine.data import ImageSource, open_source
from psi_engine.distributed import ALONE, World
from psi_engine.embedding import EMBEDDINGS, PARTS, embed_boxes, embed_once
from psi_engine.errors import DiskFullError
from psi_engine.patches import crop_and_resize
from psi_engine.types import Boxes
from tests import toy
from tests.distributed.threads import on_ranks

ROWS = 53


class Killed(Exception):
    pass


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> ImageSource:
    return open_source(toy.write_images(tmp_path_factory.mktemp("images"), 20))


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedding, "BLOCK", 8)


def boxes() -> Boxes:
    draw = torch.Generator().manual_seed(0)
    ids = torch.sort(torch.randint(0, 20, (ROWS,), generator=draw)).values
    corner = torch.randint(0, 16, (ROWS, 2), generator=draw)
    return Boxes(ids, torch.cat([corner, corner + 12], 1))


def expected(source: ImageSource) -> np.ndarray:
    """Every box by itself."""
    rows, encoder = [], toy.encoder()
    for image, box in zip(boxes().image_ids, boxes().xyxy, strict=True):
        view = source.view(int(image), toy.PREPROCESS)[None]
        crop = crop_and_resize(view, torch.tensor([0]), box[None], 8, "bilinear")
        rows.append(encoder.encode_images(crop))
    return torch.cat(rows).numpy()


def embed(
    folder: Path,
    source: ImageSource,
    world: World = ALONE,
    die_at: int | None = None,
    images: int = 3,
    key: str = "k",
    notes: list[str] | None = None,
) -> np.ndarray:
    def progress(what: str, done: int, total: int) -> None:
        assert total == ROWS
        if die_at is not None and done >= die_at:
            raise Killed

    arguments: dict[str, Any] = {"device": torch.device("cpu"), "batch_size": images}
    path = embed_boxes(
        folder, key, source, toy.PREPROCESS, boxes(), toy.encoder(),
        **arguments, progress=progress, world=world, notes=notes,
    )  # fmt: skip
    return np.load(path)


@pytest.mark.parametrize("sizes", [(1,), (2,), (4,), (9,), (1, 1), (3, 2), (2, 1, 4)])
def test_rows_do_not_depend_on_ranks_and_kills(
    tmp_path: Path, source: ImageSource, sizes: tuple[int, ...]
) -> None:
    for number, size in enumerate(sizes[:-1]):
        with pytest.raises(Killed):
            on_ranks(size, lambda world, at=16 * number + 17: embed(tmp_path, source, world, at))
        assert [*(tmp_path / PARTS).rglob("*.f32")]
    for found in on_ranks(sizes[-1], lambda world: embed(tmp_path, source, world)):
        np.testing.assert_array_equal(found, expected(source))


def test_a_torn_block_is_done_again(tmp_path: Path, source: ImageSource) -> None:
    with pytest.raises(Killed):
        embed(tmp_path, source, die_at=24)
    (data,) = (tmp_path / PARTS).rglob("*.f32")
    with open(data, "ab") as file:  # killed in the middle of a block's rows
        file.write(b"\x07" * 100)
    np.testing.assert_array_equal(embed(tmp_path, source), expected(source))


def test_rows_under_another_key_are_dropped(tmp_path: Path, source: ImageSource) -> None:
    with pytest.raises(Killed):
        embed(tmp_path, source, die_at=24, key="other")
    (data,) = (tmp_path / PARTS).rglob("*.f32")
    data.write_bytes(bytes(data.stat().st_size))
    np.testing.assert_array_equal(embed(tmp_path, source), expected(source))


def test_rows_of_other_threads_are_told_and_wait_for_them(
    tmp_path: Path, source: ImageSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    notes: list[str] = []
    with pytest.raises(Killed):
        embed(tmp_path, source, die_at=24, notes=notes)
    (data,) = (tmp_path / PARTS).rglob("*.f32")
    left = data.read_bytes()
    data.write_bytes(bytes(len(left)))  # so that a row of it would show
    threads = torch.get_num_threads()
    monkeypatch.setattr(torch, "get_num_threads", lambda: 77)
    assert not notes
    with pytest.raises(Killed):
        on_ranks(2, lambda world: embed(tmp_path, source, world, die_at=10, notes=notes))
    told = f"24 rows .* embedded again: made by threads {threads}; now threads 77"
    assert len(notes) == 1
    assert re.fullmatch(told, notes[0])
    np.testing.assert_array_equal(embed(tmp_path / "copy", source), expected(source))
    monkeypatch.undo()
    monkeypatch.setattr(embedding, "BLOCK", 8)
    data.write_bytes(left)
    done: list[int] = []
    monkeypatch.setattr(
        toy.PixelEncoder, "encode_images", counted(toy.PixelEncoder.encode_images, done)
    )
    found = embed(tmp_path, source)
    assert sum(done) == ROWS - 24
    np.testing.assert_array_equal(found, expected(source))


def counted(encode: Any, done: list[int]) -> Any:
    def encode_images(self: Any, crops: torch.Tensor) -> torch.Tensor:
        done.append(len(crops))
        return encode(self, crops)

    return encode_images


def test_a_full_disk_is_told_and_what_was_done_stays(
    tmp_path: Path, source: ImageSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, synced = os.fsync, []

    def full(descriptor: int) -> None:
        if len(synced) == 5:
            raise OSError(28, "No space left on device")
        synced.append(original(descriptor))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DiskFullError, match="no room to write a file"):
        embed(tmp_path, source)
    monkeypatch.setattr(os, "fsync", original)
    assert not (tmp_path / EMBEDDINGS).exists()
    (parts,) = (tmp_path / PARTS).iterdir()
    assert [rows for _, rows in embedding._rows_done(parts, "k", (ROWS, 48))] == [16]
    np.testing.assert_array_equal(embed(tmp_path, source), expected(source))


def test_what_is_embedded_is_kept_without_its_parts(
    tmp_path: Path, source: ImageSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    def once(key: str) -> Path:
        device = torch.device("cpu")
        return embed_once(
            tmp_path, key, source, toy.PREPROCESS, boxes(), toy.encoder(), device=device,
            batch_size=3,
        )  # fmt: skip

    path = once("k")
    assert np.array_equal(np.load(path), embed(tmp_path / "other", source))
    assert not (tmp_path / PARTS).exists()
    (tmp_path / PARTS).mkdir()  # as a kill before their end leaves them
    calls: list[str] = []

    def counting(folder: Path, key: str, *given: Any, **named: Any) -> Path:
        calls.append(key)
        return embed_boxes(folder, key, *given, **named)

    monkeypatch.setattr(embedding, "embed_boxes", counting)
    assert once("k") == path
    assert not calls
    assert not (tmp_path / PARTS).exists()
    path.unlink()
    once("k")
    once("another")
    assert calls == ["k", "another"]


def test_no_more_than_a_block_is_cropped_at_once(
    tmp_path: Path, source: ImageSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = []

    def watched(views: torch.Tensor, which: torch.Tensor, *rest: Any) -> torch.Tensor:
        sizes.append(len(which))
        return crop_and_resize(views, which, *rest)

    monkeypatch.setattr(embedding, "crop_and_resize", watched)
    found = embed(tmp_path, source, images=20)  # all boxes in one batch of images
    assert sizes == [8, 8, 8, 8, 8, 8, 5]
    np.testing.assert_array_equal(found, expected(source))
