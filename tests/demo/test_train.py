"""The script that made the assets runs, and runs the same way twice."""

import json

import pytest
import torch

from psi_engine.demo import train
from psi_engine.demo.assets import read_weights
from psi_engine.demo.networks import Classifier, DualEncoder
from psi_engine.demo.planted import Planted


@pytest.fixture
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("one_thread")
def test_a_tiny_training_writes_every_asset_and_repeats_itself(tmp_path, capsys):
    options = ["--images", "128", "--held-out", "64", "--calibration", "64", "--epochs", "1"]
    for name in ("one", "two"):
        train.main([*options, "--out", str(tmp_path / name)])
    for file in (
        "images.parquet",
        "classifier.safetensors",
        "encoder.safetensors",
        "second_encoder.safetensors",
    ):
        one, two = ((tmp_path / name / file).read_bytes() for name in ("one", "two"))
        assert one == two, file
    card = json.loads((tmp_path / "one" / "card.json").read_text())
    assert card["config"]["images"] == 128
    assert set(card["accuracy"]) >= {"classifier", "encoder_class", "encoder_shape"}
    assert "classifier: " in capsys.readouterr().out
    blank = torch.zeros(32)
    Classifier(Planted(blank, blank)).load_state_dict(
        read_weights(tmp_path / "one" / "classifier.safetensors")
    )
    encoders = [
        read_weights(tmp_path / "one" / f"{name}.safetensors")
        for name in ("encoder", "second_encoder")
    ]
    for state in encoders:
        DualEncoder().load_state_dict(state)
    assert not torch.equal(encoders[0]["image.project.weight"], encoders[1]["image.project.weight"])
    before = {path.name: path.read_bytes() for path in (tmp_path / "one").iterdir()}
    (tmp_path / "one" / "second_encoder.safetensors").unlink()
    train.main([*options, "--only", "second-encoder", "--out", str(tmp_path / "one")])
    assert {path.name: path.read_bytes() for path in (tmp_path / "one").iterdir()} == before
