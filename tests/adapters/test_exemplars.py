"""Exemplar folders of MILAN and MAIA in their documented layout."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from psi_engine import adapters
from psi_engine.adapters.pictures import as_pictures
from psi_engine.errors import InputError
from tests.adapters import contents

UNITS, K, SIDE = 3, 4, 8


def write(folder: Path, layer: str = "layer4", **changes: np.ndarray) -> Path:
    """The four files as MILAN's dissection saves them."""
    rng = np.random.default_rng(7)
    home = folder / layer
    home.mkdir(parents=True)
    masks = np.zeros((UNITS, K, 1, SIDE, SIDE), np.uint8)
    masks[..., 1:3, 4:6] = 1
    masks[1, 0] = 0
    files = {
        "images": rng.integers(0, 256, (UNITS, K, 3, SIDE, SIDE), dtype=np.uint8),
        "masks": masks,
        "activations": np.sort(rng.random((UNITS, K)))[:, ::-1],
        "ids": np.stack([rng.permutation(20)[:K] for _ in range(UNITS)]),
    } | changes
    for name in ("images", "masks"):
        np.save(home / f"{name}.npy", files[name])
    for name, form in (("activations", "%.5e"), ("ids", "%i")):
        np.savetxt(home / f"{name}.csv", files[name], delimiter=",", fmt=form)
    return home


def test_a_folder_of_layers_or_one_layer_is_read(tmp_path: Path) -> None:
    write(tmp_path, "layer3")
    home = write(tmp_path)
    both = adapters.read("exemplars", tmp_path)
    assert both.layers == ("layer3", "layer4")
    one = adapters.read("exemplars", home)
    assert one.layers == ("layer4",)
    assert one.exemplars["layer4"].images.shape == (UNITS, K, 3, SIDE, SIDE)
    ids = np.loadtxt(home / "ids.csv", delimiter=",")
    assert np.array_equal(one.examples[0].image_ids.numpy(), ids)


def test_equal_activations_keep_the_order_of_the_pictures(tmp_path: Path) -> None:
    ids = np.tile(np.arange(K)[::-1], (UNITS, 1))
    write(tmp_path, activations=np.ones((UNITS, K)), ids=ids)
    assert np.array_equal(adapters.read("exemplars", tmp_path).examples[0].image_ids.numpy(), ids)


def test_a_patch_is_the_picture_around_its_mask(tmp_path: Path) -> None:
    write(tmp_path)
    read = adapters.read("exemplars", tmp_path)
    numbered, source = as_pictures(read)
    assert len(source) == UNITS * K
    assert source.keys[5] == "layer4/1/1"
    assert numbered.examples[0].image_ids.tolist() == np.arange(12).reshape(3, 4).tolist()
    images = read.exemplars["layer4"].images
    assert np.array_equal(np.array(source.item(6)), images[1, 2, :, 1:3, 4:6].transpose(1, 2, 0))
    assert np.array_equal(np.array(source.item(4)), images[1, 0].transpose(1, 2, 0))  # no mask


def test_written_and_read_again_is_the_same(tmp_path: Path) -> None:
    made = contents.whole()
    written = adapters.write("exemplars", made, tmp_path)
    read = adapters.read("exemplars", tmp_path)
    for name in ("images", "masks"):
        theirs = getattr(read.exemplars["layer4"], name)
        assert np.array_equal(theirs, getattr(made.exemplars["layer4"], name))
    assert torch.equal(read.examples[0].image_ids, made.examples[0].image_ids)
    assert torch.equal(read.examples[0].values, made.examples[0].values)
    # MAIA also loads thresholds.csv, one number a unit.
    assert written[-1].name == "thresholds.csv"
    thresholds = np.loadtxt(written[-1], delimiter=",")
    assert np.array_equal(thresholds, made.examples[0].values.amin(1).numpy())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"masks": np.zeros((3, 5, 1, 8, 8), np.uint8)}, r"masks and images .*\(3, 5\) and \(3, 4"),
        ({"masks": np.zeros((3, 4, 1, 4, 4), np.uint8)}, "other shapes than MILAN writes"),
        ({"images": np.zeros((3, 4, 3, 8, 8), np.float32)}, "images float32"),
        ({"images": np.zeros((3, 4, 3, 8), np.uint8)}, "expected .* with 5 axes"),
        ({"ids": np.full((3, 4), -1)}, "does not hold image ids; got -1"),
        ({"ids": np.full((3, 4), 2)}, "image 2 in channel 0"),
        ({"ids": np.zeros((2, 4))}, r"ids and images of layer4 do not fit; got \(2, 4\)"),
        ({"activations": np.full((3, 4), np.nan)}, "not finite"),
        ({"activations": np.tile(np.arange(4.0), (3, 1))}, "not in the order"),
    ],
)
def test_unfit_files_are_refused(tmp_path: Path, changes: dict, message: str) -> None:
    write(tmp_path, **changes)
    with pytest.raises(InputError, match=message):
        adapters.read("exemplars", tmp_path)


def test_broken_and_missing_files_are_refused(tmp_path: Path) -> None:
    home = write(tmp_path)
    (home / "ids.csv").write_text("1,2,3,4\n5,6\n")
    with pytest.raises(InputError, match=r"ids.csv cannot be read"):
        adapters.read("exemplars", tmp_path)
    (home / "ids.csv").write_text("")
    with pytest.raises(InputError, match=r"ids.csv cannot be read"):
        adapters.read("exemplars", tmp_path)
    (home / "masks.npy").unlink()
    with pytest.raises(InputError, match=r"not there; got .*masks.npy"):
        adapters.read("exemplars", tmp_path)
    with pytest.raises(InputError, match="no exemplars in the folder"):
        adapters.read("exemplars", home.parent.parent)
