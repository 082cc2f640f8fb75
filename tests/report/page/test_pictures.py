from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from psi_engine.data import open_source
from psi_engine.report.page.pictures import COLUMNS, Drawn, Patches, Pictures, draw
from tests.toy import PREPROCESS, write_images

SIDE = 16


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("images"), 30)


def patches(channels: int = 3, each: int = 14) -> Patches:
    rng = np.random.default_rng(0)
    total = channels * each
    corner = rng.integers(0, 32 - SIDE, (total, 2))
    group = np.tile(np.repeat([0, 1], each // 2), channels)
    return Patches(
        np.repeat(np.arange(channels), each),
        group,
        np.tile(np.arange(each // 2), 2 * channels),
        rng.integers(0, 30, total),
        np.concatenate([corner, corner + SIDE], 1),
    )


def drawn(folder: Path, images: Path, asked: Patches, bound: int = 10_000_000) -> Drawn:
    folder.mkdir()
    return draw(folder, asked, Pictures(open_source(images), PREPROCESS), bound)


def test_tiles_and_hosts_show_what_was_cut(tmp_path: Path, images: Path) -> None:
    asked, source = patches(), open_source(images)
    found = drawn(tmp_path / "out", images, asked)
    assert (found.side, found.host_side, found.image_side, found.notes) == (SIDE, 32, 32, ())
    assert found.slots.tolist() == [*range(14)] * 3
    assert found.hosts == set(asked.image.tolist())
    for row in range(3):
        with Image.open(tmp_path / "out/sprites" / f"{row}.webp") as file:
            sheet = np.asarray(file.convert("RGB")).astype(int)
        assert sheet.shape == (2 * SIDE, COLUMNS * SIDE, 3)
        for i in np.flatnonzero(asked.channel == row):
            view = PREPROCESS.view(source.item(int(asked.image[i]))).permute(1, 2, 0).numpy()
            x0, y0, x1, y1 = asked.box[i]
            top, left = (SIDE * x for x in divmod(int(found.slots[i]), COLUMNS))
            tile = sheet[top : top + SIDE, left : left + SIDE]
            wanted = view[y0:y1, x0:x1].astype(int)
            # WebP blurs noise; another patch would be off by far more
            assert np.abs(tile.mean((0, 1)) - wanted.mean((0, 1))).max() < 12
    assert not list((tmp_path / "out").glob("*.tmp"))


def test_the_bound_holds_and_what_is_left_out_is_said(tmp_path: Path, images: Path) -> None:
    asked = patches()
    whole = drawn(tmp_path / "whole", images, asked)
    size = sum(path.stat().st_size for path in (tmp_path / "whole").rglob("*.webp"))
    sheets = sum(path.stat().st_size for path in (tmp_path / "whole/sprites").iterdir())
    bound = sheets * 2
    assert bound < size
    fewer = drawn(tmp_path / "fewer", images, asked, bound)
    kept = sum(path.stat().st_size for path in (tmp_path / "fewer").rglob("*.webp"))
    assert kept <= bound
    assert fewer.slots.tolist() == whole.slots.tolist()
    assert 0 < len(fewer.hosts) < len(whole.hosts)
    assert f"{len(whole.hosts) - len(fewer.hosts)} of {len(whole.hosts)} host" in fewer.notes[0]
    files = {int(path.stem) for path in (tmp_path / "fewer/hosts").iterdir()}
    assert files == fewer.hosts
    best = {image: asked.place[asked.image == image].min() for image in whole.hosts}
    assert max(best[i] for i in fewer.hosts) <= min(best[i] for i in whole.hosts - fewer.hosts) + 0
    least = drawn(tmp_path / "least", images, asked, sheets // 2)
    assert (least.slots >= 0).sum() < len(least.slots)
    assert (asked.place[least.slots >= 0]).max() < (asked.place[least.slots < 0]).min()
    assert any("only the best" in note for note in least.notes)


def test_cut_off_patches_keep_their_shape(tmp_path: Path, images: Path) -> None:
    asked = patches(1, 4)
    asked.box[0] = 0, 0, 8, 16
    found = drawn(tmp_path / "out", images, asked)
    with Image.open(tmp_path / "out/sprites/0.webp") as file:
        tile = np.asarray(file.convert("RGB")).astype(int)[:16, :16]
    assert found.side == 16
    assert np.abs(tile[:, :3] - 128).max() < 40  # grey beside it
    assert np.abs(tile[:, -3:] - 128).max() < 40


def test_an_image_that_broke_since_is_left_out_and_named(tmp_path: Path, images: Path) -> None:
    home = write_images(tmp_path / "images", 30)
    asked = patches()
    source = open_source(home)
    victim = int(asked.image[0])
    next(home.rglob(Path(source.keys[victim]).name)).write_bytes(b"no picture")
    (tmp_path / "out").mkdir()
    found = draw(tmp_path / "out", asked, Pictures(source, PREPROCESS), 10_000_000)
    assert (found.slots[asked.image == victim] == -1).all()
    assert (found.slots[asked.image != victim] >= 0).all()
    assert victim not in found.hosts
    assert any(source.keys[victim] in note for note in found.notes)


def test_the_same_patches_give_the_same_bytes(tmp_path: Path, images: Path) -> None:
    for name in "ab":
        drawn(tmp_path / name, images, patches())
    first, second = (
        {p.relative_to(tmp_path / n): p.read_bytes() for p in (tmp_path / n).rglob("*.webp")}
        for n in "ab"
    )
    assert first == second
