"""Pickles that carry code are refused, and nothing of them runs."""

from __future__ import annotations

import os
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from psi_engine import adapters
from psi_engine.adapters import safe_files
from psi_engine.errors import InputError
from psi_engine.score_file import score_file
from tests.adapters import contents, make_files


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


EVIL = ("../../pwned", "a/../../b", "/root/x", "..", "a\\..\\b", "C:\\x", "a\0b")


@pytest.mark.parametrize("name", EVIL)
def test_layers_named_to_lead_out_of_the_folder_are_refused(tmp_path: Path, name: str) -> None:
    cache = "aggregate_conv_max-5-relu.safetensors"
    path = tmp_path / cache
    save_file(load_file(make_files.FILES / "semanticlens" / cache), path, {"layer_name": name})
    with pytest.raises(InputError, match="name leads out of the folder"):
        adapters.read("semanticlens", path)
    rows = torch.zeros(2, 4, 3)
    save_file({name: rows}, path)
    with pytest.raises(InputError, match="name leads out of the folder"):
        adapters.read("semanticlens", path)
    for made in ({"activations": {name: rows[0]}}, {"exemplars": {name: None}}):
        with pytest.raises(InputError, match="name leads out of the folder"):
            adapters.Contents(**made)
    with pytest.raises(InputError, match="name leads out of the folder"):
        contents.examples(name)


@pytest.mark.parametrize("tool", ["crp", "semanticlens", "exemplars", "sae-for-vlm"])
def test_layers_with_a_slash_are_no_file_names(tmp_path: Path, tool: str) -> None:
    part, whole = contents.examples("enc/layer4"), contents.whole()
    made = adapters.Contents(
        examples=(part,),
        activations={"enc/layer4": torch.rand(30, 6)},
        exemplars={"enc/layer4": whole.exemplars["layer4"]},
    )
    with pytest.raises(InputError, match="cannot be part of a file's name; got 'enc/layer4'"):
        adapters.write(tool, made, tmp_path)
    assert not list(tmp_path.iterdir())


def test_nothing_is_written_through_a_link_out_of_the_folder(tmp_path: Path) -> None:
    outside, out = tmp_path / "outside", tmp_path / "out"
    outside.mkdir()
    out.mkdir()
    (out / "layer4").symlink_to(outside)
    with pytest.raises(InputError, match="outside of the folder"):
        adapters.write("exemplars", contents.whole(), out)
    assert not list(outside.iterdir())


def packed(path: Path, **parts: np.ndarray) -> Path:
    csr = {
        "format": np.array(b"csr"), "shape": np.array([4, 3]), "data": np.ones(2, np.float32),
        "indices": np.array([0, 1]), "indptr": np.array([0, 1, 2, 2, 2]),
    }  # fmt: skip
    np.savez_compressed(path, **{**csr, **parts})
    return path


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"shape": np.array([4, 10**12])}, "does not fit into the memory; got 1000000000000 lat"),
        ({"shape": np.array([10**12, 4])}, "1000000000000 rows, 5 ends of rows"),
        ({"shape": np.array([4, 3, 2])}, "no sound CSR matrix"),
        ({"shape": np.array([4.0, 3.0])}, "no sound CSR matrix"),
        ({"shape": np.array([4, -3])}, "no sound CSR matrix"),
    ],
)
def test_matrices_that_claim_any_size_are_refused(
    tmp_path: Path, parts: dict[str, np.ndarray], message: str
) -> None:
    path = packed(tmp_path / "token_acts.npz", **parts)
    assert path.stat().st_size < 2000
    with pytest.raises(InputError, match=message):
        adapters.read("saev", path, grid=(2, 2))


def test_archives_that_unpack_to_more_than_fits_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(safe_files, "memory_budget", lambda device: 1 << 20)
    path = packed(tmp_path / "token_acts.npz", data=np.zeros(5 << 18, np.float32))
    assert path.stat().st_size < 20_000
    with pytest.raises(InputError, match="does not fit into the memory; got unpacked"):
        adapters.read("saev", path, grid=(2, 2))
    wide = tmp_path / "x_part1.pt"
    torch.save(torch.zeros(1, 1).expand(1 << 11, 1 << 10), wide)  # one stored number
    assert wide.stat().st_size < 20_000
    with pytest.raises(InputError, match="does not fit into the memory; got a tensor"):
        adapters.read("sae-for-vlm", wide)


def test_arrays_that_claim_more_than_they_hold_are_refused(tmp_path: Path) -> None:
    path = packed(tmp_path / "good.npz")
    header = {"descr": "<f4", "fortran_order": False, "shape": (10**15,)}
    with zipfile.ZipFile(path) as good, zipfile.ZipFile(tmp_path / "bad.npz", "w") as bad:
        for name in good.namelist():
            with bad.open(name, "w") as file:
                if name == "data.npy":
                    np.lib.format.write_array_header_1_0(file, header)
                else:
                    file.write(good.read(name))
    with pytest.raises(InputError, match="data.npy claims 4000000000000000 bytes and holds 0"):
        adapters.read("saev", tmp_path / "bad.npz", grid=(2, 2))


def test_unknown_tools_and_absent_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="unknown tool; got 'lens'; expected one of semanticlens"):
        adapters.read("lens", tmp_path)
    with pytest.raises(InputError, match="a file is not there"):
        adapters.read("crp", tmp_path / "none")
    with pytest.raises(InputError, match="no files named"):
        adapters.read("crp")
