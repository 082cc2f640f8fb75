"""zennit-crp's files: what the tool wrote is read, what we write the tool loads."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from psi_engine import adapters
from psi_engine.errors import InputError
from tests.adapters import contents, make_files

FOLDER = "ActMax_max_unnormed"
FILES = make_files.FILES / "crp"
REASON = "zennit-crp is missing (pip install --no-deps zennit-crp==0.6.0 zennit==0.5.1)"


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    return Path(shutil.copytree(FILES, tmp_path / "copied"))


def test_what_the_tool_wrote_is_what_the_network_does() -> None:
    (part,) = adapters.read("crp", FILES, grid=(4, 4)).examples
    assert part.layer == "relu"
    maps = make_files.maps().flatten(2)
    for channel in range(make_files.CHANNELS):
        for rank, image in enumerate(part.image_ids[channel].tolist()):
            place = int(part.positions[channel, rank])
            assert part.values[channel, rank] == pytest.approx(maps[image, channel, place].item())
            assert maps[image, channel, place] == maps[image, channel].max()
    assert (part.values[:, 1:] <= part.values[:, :-1]).all()


@pytest.mark.filterwarnings("ignore")  # of the tool
def test_the_tool_writes_the_committed_files_today(tmp_path: Path) -> None:
    pytest.importorskip("crp", reason=REASON)
    made = make_files.make_crp(tmp_path)
    for name in ("data", "rel", "rf"):
        ours, theirs = (np.load(f / f"relu_{name}.npy") for f in (FILES / FOLDER, made))
        assert ours.dtype == theirs.dtype
        assert np.allclose(ours, theirs, atol=1e-6)


@pytest.mark.filterwarnings("ignore")  # of the tool
def test_the_tool_loads_what_we_write(tmp_path: Path) -> None:
    pytest.importorskip("crp", reason=REASON)
    from crp.attribution import CondAttribution
    from crp.concepts import ChannelConcept
    from crp.visualization import FeatureVisualization

    part = contents.examples("relu", channels=4)
    first = torch.arange(5).expand(4, 5).contiguous()
    part = adapters.TopExamples("relu", first, part.values, part.positions, (4, 4))
    adapters.write("crp", adapters.Contents(examples=(part,)), tmp_path)
    reader = FeatureVisualization(
        CondAttribution(make_files.net()),
        make_files.Pictures(True),
        {"relu": ChannelConcept()},
        max_target="max",
        abs_norm=False,
        path=str(tmp_path),
    )
    shown = reader.get_max_reference([2], "relu", "activation", (0, 5), plot_fn=None)
    assert torch.equal(shown[2].detach(), make_files.inputs()[:5])


def test_written_and_read_again_is_the_same(tmp_path: Path) -> None:
    part = contents.examples()
    adapters.write("crp", adapters.Contents(examples=(part,)), tmp_path)
    assert np.load(tmp_path / FOLDER / "layer4_data.npy").shape == (contents.K, contents.CHANNELS)
    contents.same(adapters.read("crp", tmp_path, grid=contents.GRID).examples[0], part)


def test_a_given_name_is_for_one_layer_only(copied: Path) -> None:
    assert adapters.read("crp", copied, layer="mine").layers == ("mine",)
    for kind in ("data", "rel", "rf"):
        shutil.copy(copied / FOLDER / f"relu_{kind}.npy", copied / FOLDER / f"b_{kind}.npy")
    assert adapters.read("crp", copied).layers == ("b", "relu")
    with pytest.raises(InputError, match="one name was given for several layers; .* for b, relu"):
        adapters.read("crp", copied, layer="mine")


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("data", lambda x: x[:, :3], r"do not fit each other; got data \(12, 3\), rel \(12, 4\)"),
        ("rf", lambda x: x + 16, r"outside its map; got 16 to .*0 to 15 for \(4, 4\)"),
        ("rf", lambda x: x - 20, "positions of relu lie outside"),
        ("data", lambda x: np.where(x == 3, -1, x), "negative ids; got -1"),
        ("data", lambda x: x.astype(np.float32), "got float32; expected .*ids"),
        ("rel", lambda x: np.where(x == x.max(), np.nan, x), "not finite"),
        ("rel", lambda x: x.astype(object), "cannot be read.*never opened"),
        ("rel", lambda x: x[0], r"got shape \(4,\); expected .* 2 axes"),
        ("data", lambda x: x[:3], "do not fit"),
    ],
)
def test_unfit_files_are_refused(copied: Path, name: str, change: object, message: str) -> None:
    path = copied / FOLDER / f"relu_{name}.npy"
    np.save(path, change(np.load(path)), allow_pickle=True)
    with pytest.raises(InputError, match=message):
        adapters.read("crp", copied, grid=(4, 4))


def test_cut_missing_and_doubled_files_are_refused(copied: Path) -> None:
    path = copied / FOLDER / "relu_rf.npy"
    held = path.read_bytes()
    path.write_bytes(held[:150])
    with pytest.raises(InputError, match=r"relu_rf.npy cannot be read"):
        adapters.read("crp", copied)
    path.unlink()
    with pytest.raises(InputError, match=r"a file is not there; got .*relu_rf.npy"):
        adapters.read("crp", copied)
    path.write_bytes(held)
    shutil.copytree(copied / FOLDER, copied / "ActMax_sum_normed")
    with pytest.raises(InputError, match=r"not clear; got ActMax_max_unnormed, ActMax_sum_normed"):
        adapters.read("crp", copied)
    assert adapters.read("crp", copied / "ActMax_sum_normed").layers == ("relu",)
    shutil.copytree(copied / FOLDER, copied / "RelMax_sum_normed")
    assert "relevances" in adapters.read("crp", copied / "RelMax_sum_normed").notes[0]
