"""Each image goes through each network once; an interrupted run continues."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from psi_engine.data import open_source
from psi_engine.encoders import load_encoder
from psi_engine.errors import DataError, ModelError
from psi_engine.models import load_model
from psi_engine.validation import images as module
from psi_engine.validation.images import LOGITS, see_images
from tests import toy

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory):
    return open_source(toy.write_images(tmp_path_factory.mktemp("images"), 70))


def count(model) -> list[int]:
    """Sizes of the batches that go through the model from now on."""
    sizes: list[int] = []
    model.module.register_forward_pre_hook(lambda _, given: sizes.append(len(given[0])))
    return sizes


def see(folder: Path, source, model, progress=None):
    return see_images(folder, source, model, load_encoder("tests.toy:encoder"), CPU, progress)


def test_rows_are_the_networks_own_and_a_repeat_runs_nothing(tmp_path: Path, source) -> None:
    model = load_model("tests.toy:model")
    sizes = count(model)
    seen = see(tmp_path, source, model)
    assert sizes == [16] * 5  # the last one padded
    views = torch.stack([source.view(i, model.preprocess) for i in range(70)])
    expected = model.module(model.preprocess.normalise(views))
    torch.testing.assert_close(seen.logits, expected, atol=1e-5, rtol=1e-5)
    assert torch.equal(seen.ids, torch.arange(70))
    assert torch.equal(seen.labels, source.labels)
    assert seen.embeddings.shape == (70, 48)
    sizes.clear()
    again = see(tmp_path, source, model)
    assert not sizes
    assert all(torch.equal(one, other) for one, other in zip(seen, again, strict=True))


def test_an_interrupted_run_continues_with_the_same_bits(
    tmp_path: Path, source, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_SAVE_EVERY", 2)
    model = load_model("tests.toy:model")
    whole = see(tmp_path / "whole", source, model)

    def stop(what: str, done: int, total: int) -> None:
        if done >= 48:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        see(tmp_path / "part", source, model, stop)
    sizes = count(model)
    rest = see(tmp_path / "part", source, model)
    assert sizes == [16] * 3  # 32 of 70 images were saved
    assert all(torch.equal(one, other) for one, other in zip(whole, rest, strict=True))


def test_logits_that_were_cut_short_are_made_again(tmp_path: Path, source) -> None:
    model = load_model("tests.toy:model")
    whole = see(tmp_path, source, model)
    path = tmp_path / LOGITS
    path.write_bytes(path.read_bytes()[:200])
    sizes = count(model)
    again = see(tmp_path, source, model)
    assert sizes == [16] * 5
    assert torch.equal(whole.logits, again.logits)


def test_another_model_starts_afresh(tmp_path: Path, source) -> None:
    see(tmp_path, source, load_model("tests.toy:model"))
    other = load_model("tests.toy:model", weights="none")
    other.module.head.weight.data += 1
    changed = type(other)(**{**vars(other), "fingerprint": "another"})
    sizes = count(changed)
    see(tmp_path, source, changed)
    assert len(sizes) == 5


def test_an_unreadable_image_is_left_out(tmp_path: Path) -> None:
    folder = toy.write_images(tmp_path / "images", 40)
    broken = sorted(folder.rglob("*.png"))[7]
    broken.write_bytes(b"no picture")
    seen = see(tmp_path / "out", open_source(folder), load_model("tests.toy:model"))
    assert seen.ids.tolist() == [i for i in range(40) if i != 7]
    assert len(seen.embeddings) == len(seen.labels) == len(seen.logits) == 39


def test_images_without_labels_and_models_without_logits_are_refused(
    tmp_path: Path, source
) -> None:
    flat = open_source(toy.write_images(tmp_path / "flat", 8, labelled=False))
    with pytest.raises(DataError, match="have no labels"):
        see(tmp_path / "out", flat, load_model("tests.toy:model"))
    with pytest.raises(ModelError, match="does not give logits"):
        see(tmp_path / "out", source, load_model("tests.toy:poisoned"))
