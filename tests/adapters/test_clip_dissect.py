"""CLIP-Dissect's files in their documented layout, and its table of descriptions."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
import torch

from psi_engine import adapters
from psi_engine.errors import InputError
from tests.adapters import contents

ROWS, CHANNELS, DIM, WORDS = 40, 5, 8, 3


def write(folder: Path, **changes: torch.Tensor) -> list[Path]:
    """The three files and the list of words, as the tool names them."""
    generator = torch.Generator().manual_seed(3)
    tensors = {
        "broden_resnet50_layer4": torch.randn(ROWS, CHANNELS, generator=generator),
        "broden_ViT-B16": torch.randn(ROWS, DIM, generator=generator).half(),
        "3words_ViT-B16": torch.randn(WORDS, DIM, generator=generator).half(),
    } | changes
    for name, tensor in tensors.items():
        torch.save(tensor, folder / f"{name}.pt")
    (folder / "3words.txt").write_text("fur\nwheel\nsky\n")
    return [*(folder / f"{name}.pt" for name in tensors), folder / "3words.txt"]


def test_files_are_read_by_their_place(tmp_path: Path) -> None:
    read = adapters.read("clip-dissect", *write(tmp_path))
    assert read.layers == ("layer4",)
    assert read.activations["layer4"].shape == (ROWS, CHANNELS)
    assert read.image_embeddings.dtype == torch.float32
    assert read.text_embeddings.shape == (WORDS, DIM)
    assert read.concepts == ("fur", "wheel", "sky")
    assert read.encoder == "ViT-B16"
    assert "mean over each image's map" in read.notes[0]


def test_layers_are_told_apart(tmp_path: Path) -> None:
    write(tmp_path)
    for name in ("p_net_layer3_max", "p_net_layer4_max", "q_net_layer4_max"):
        torch.save(torch.randn(ROWS, 2), tmp_path / f"{name}.pt")
    files = [tmp_path / f"p_net_layer{i}_max.pt" for i in (3, 4)]
    rest = [tmp_path / "broden_ViT-B16.pt", tmp_path / "3words_ViT-B16.pt"]
    read = adapters.read("clip-dissect", *files, *rest)
    assert read.layers == ("layer3", "layer4")
    assert "maximum" in read.notes[0]
    both = [files[1], tmp_path / "q_net_layer4_max.pt"]
    assert adapters.read("clip-dissect", *both, *rest).layers == tuple(p.stem for p in both)
    assert adapters.read("clip-dissect", files[0], *rest, layer="mine").layers == ("mine",)
    with pytest.raises(InputError, match="two files hold activations of one layer"):
        adapters.read("clip-dissect", files[0], files[0], *rest)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"broden_resnet50_layer4": torch.randn(39, 5)}, "of different images; got .*39, 5.*40, 8"),
        ({"3words_ViT-B16": torch.randn(3, 9)}, "different encoders; got .*40, 8.*3, 9"),
        ({"3words_ViT-B16": torch.randn(4, 8)}, "does not name the rows .* 3 names for 4 rows"),
        ({"broden_resnet50_layer4": torch.full((40, 5), torch.nan)}, "not all finite; got nan"),
        ({"broden_ViT-B16": torch.randn(40, 8, 1)}, r"got \(40, 8, 1\)"),
        ({"broden_ViT-B16": {"a": torch.zeros(2)}}, "holds no tensor; got dict"),
        ({"broden_ViT-B16": torch.zeros(40, 8, dtype=torch.bool)}, "got torch.bool"),
    ],
)
def test_unfit_files_are_refused(tmp_path: Path, changes: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        adapters.read("clip-dissect", *write(tmp_path, **changes))


def test_too_few_and_cut_files_are_refused(tmp_path: Path) -> None:
    files = write(tmp_path)
    with pytest.raises(InputError, match="not the files of CLIP-Dissect"):
        adapters.read("clip-dissect", *files[:2])
    files[0].write_bytes(files[0].read_bytes()[:300])
    with pytest.raises(InputError, match="cannot be read"):
        adapters.read("clip-dissect", *files)


def test_descriptions_are_the_tools_table(tmp_path: Path) -> None:
    (path,) = adapters.write("clip-dissect", contents.whole(), tmp_path)
    table = pd.read_csv(path)
    assert list(table.columns) == ["layer", "unit", "description", "similarity"]
    assert table["description"].tolist() == ['a "red", square', "fur"]
    assert table["unit"].tolist() == [0, 3]
    assert table["similarity"].tolist() == [0.25, 1 / 3]
    with pytest.raises(InputError, match="no descriptions to write for CLIP-Dissect"):
        adapters.write("clip-dissect", adapters.Contents(), tmp_path / "other")
