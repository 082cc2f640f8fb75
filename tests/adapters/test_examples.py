"""The ten-line example of every adapter runs as it stands, with the toy world in its names."""

from __future__ import annotations

import doctest
from pathlib import Path

import numpy as np
import pytest
from scipy import sparse

from psi_engine.adapters.from_run import export_run
from psi_engine.adapters.registry import TOOLS, adapter
from tests import toy
from tests.adapters import make_files, test_clip_dissect, test_exemplars, test_sae_for_vlm
from tests.adapters.test_into_run import toy_run

SMALL = ', replicates=20, device="cpu", subsamples=0, top_k=8, patch=16'
TOY = {
    '"open_clip:ViT-B-32"': '"tests.toy:encoder"' + SMALL.replace(", patch=16", ""),
    'model="resnet50"': 'model="tests.toy:model", patch=16, image_size=32',
    "grid=(14, 14)": "grid=(8, 8)",
    "patch=64": "patch=16, image_size=32",
    "top_k=50": "top_k=8",
    'files, out="runs/dissect"': 'files, out="runs/dissect"' + SMALL.replace(", patch=16", ""),
    'out="runs/sae"': 'out="runs/sae"' + SMALL.replace(", patch=16", ""),
}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every file that the examples name."""
    home = tmp_path_factory.mktemp("world")
    toy.write_images(home / "images", 16)
    run = toy_run(home / "images", home / "runs" / "resnet50", replicates=20, top_k=8)
    positive = ["conv2:1-7"]  # saev keeps no activations below 0, which channel 0 has alone
    toy_run(home / "images", home / "runs" / "relu", replicates=20, top_k=8, channels=positive)
    export_run("crp", run, home / "FeatureVisualization")
    cache = home / "cache" / "ActivationComponentVisualizer" / "data"
    cache.mkdir(parents=True)
    (cache / "net").symlink_to(make_files.FILES / "semanticlens")
    test_exemplars.write(home / "exemplars" / "resnet152" / "imagenet")
    names = dict(zip(test_clip_dissect.write(home), ("a", "b", "20k_ViT-B16.pt", "20k.txt"),
                     strict=True))  # fmt: skip
    for path, name in names.items():
        if name.startswith("20k"):
            path.rename(home / name)
    test_sae_for_vlm.write(home)
    (home / "acts").rename(home / "activations_dir")
    tokens = home / "inference" / "3e27794f"
    tokens.mkdir(parents=True)
    values = np.random.default_rng(0).random((16 * 64, 5)).astype(np.float32)
    sparse.save_npz(tokens / "token_acts.npz", sparse.csr_array(np.where(values > 0.5, values, 0)))
    return home


@pytest.mark.parametrize("tool", TOOLS)
def test_the_example_runs(world: Path, monkeypatch: pytest.MonkeyPatch, tool: str) -> None:
    text = adapter(tool).__doc__
    lines = doctest.DocTestParser().get_examples(text)
    assert 4 <= len(lines) <= 8
    for name, small in TOY.items():
        text = text.replace(name, small)
    if tool == "saev":
        text = text.replace("runs/resnet50", "runs/relu")
    monkeypatch.chdir(world)
    names: dict[str, object] = {}
    for example in doctest.DocTestParser().get_examples(text):
        exec(example.source, names)
    assert names["contents"].layers
