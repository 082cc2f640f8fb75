"""Pickles that carry code are refused, and nothing of them runs."""

from __future__ import annotations

import os
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from psi_engine import adapters
from psi_engine.errors import InputError
from psi_engine.score_file import score_file


class Payload:
    """Makes a folder when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = str(mark)

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (self.mark,)


def carriers(folder: Path, mark: Path) -> dict[str, Path]:
    """The payload as a torch file of both formats, a bare pickle, .npy and .npz."""
    paths = {}
    for name, new in (("zip.pt", True), ("legacy.pt", False)):
        paths[name] = folder / name
        torch.save(Payload(mark), paths[name], _use_new_zipfile_serialization=new)
    for name in ("bare.pt", "bare.npy", "bare.npz"):
        paths[name] = folder / name
        paths[name].write_bytes(pickle.dumps(Payload(mark)))
    objects = np.array([[Payload(mark)]], dtype=object)
    paths["objects.npy"], paths["objects.npz"] = folder / "objects.npy", folder / "objects.npz"
    np.save(paths["objects.npy"], objects, allow_pickle=True)
    with zipfile.ZipFile(paths["objects.npz"], "w") as archive:
        for name in ("format", "shape", "data", "indices", "indptr", "embeddings"):
            archive.write(paths["objects.npy"], f"{name}.npy")
    return paths


def test_the_payload_would_run(tmp_path: Path) -> None:
    """What is refused below is dangerous: opened carelessly, each file makes its folder."""
    for number, name in enumerate(("zip.pt", "bare.npy", "objects.npz")):
        mark = tmp_path / f"mark{number}"
        (tmp_path / f"{number}").mkdir()
        path = carriers(tmp_path / f"{number}", mark)[name]
        if name.endswith(".pt"):
            torch.load(path, weights_only=False)
        elif name.endswith(".npz"):
            np.load(path, allow_pickle=True)["data"]
        else:
            np.load(path, allow_pickle=True)
        assert mark.is_dir()


@pytest.mark.parametrize("name", ["zip.pt", "legacy.pt", "bare.pt"])
def test_torch_files_with_code_run_nothing(tmp_path: Path, name: str) -> None:
    mark = tmp_path / "mark"
    path = carriers(tmp_path, mark)[name]
    good = tmp_path / "x_part1.pt"
    torch.save(torch.rand(9, 3), good)
    for tool, files in (("clip-dissect", [good, good, path]), ("sae-for-vlm", [path])):
        with pytest.raises(InputError, match="cannot be read.*could run code is never opened"):
            adapters.read(tool, *files)
    assert not mark.exists()


@pytest.mark.parametrize("name", ["bare.npy", "objects.npy"])
def test_arrays_with_code_run_nothing(tmp_path: Path, name: str) -> None:
    mark = tmp_path / "mark"
    held = carriers(tmp_path, mark)[name].read_bytes()
    (tmp_path / "hai_indices_5.npy").write_bytes(held)
    (tmp_path / "relu_data.npy").write_bytes(held)
    (tmp_path / "images.npy").write_bytes(held)
    for tool, path in (
        ("sae-for-vlm", tmp_path / "hai_indices_5.npy"),
        ("crp", tmp_path),
        ("exemplars", tmp_path),
    ):
        with pytest.raises(InputError, match="cannot be read.*could run code is never opened"):
            adapters.read(tool, path)
    assert not mark.exists()


@pytest.mark.parametrize("name", ["bare.npz", "objects.npz"])
def test_archives_with_code_run_nothing(tmp_path: Path, name: str) -> None:
    mark = tmp_path / "mark"
    path = carriers(tmp_path, mark)[name]
    with pytest.raises(InputError, match="cannot be read"):
        adapters.read("saev", path, grid=(2, 2))
    with pytest.raises(InputError, match="cannot be read"):
        score_file(path, out=tmp_path / "out")
    assert not mark.exists()
    assert not (tmp_path / "out").exists()


def test_unknown_tools_and_absent_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="unknown tool; got 'lens'; expected one of semanticlens"):
        adapters.read("lens", tmp_path)
    with pytest.raises(InputError, match="a file is not there"):
        adapters.read("crp", tmp_path / "none")
    with pytest.raises(InputError, match="no files named"):
        adapters.read("crp")
