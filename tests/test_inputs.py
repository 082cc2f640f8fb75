"""Layers of a run by names, globs and latents, from the options to the tables."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import psi_engine as psi
from psi_engine.errors import InputError, RunFolderError
from psi_engine.inputs import check
from psi_engine.report.tables import summarise
from tests import toy
from tests.models.saes import HERE
from tests.toy import RUN_OPTIONS


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy.write_images(tmp_path_factory.mktemp("images"), 24)


def config(images: Path, **changes: Any) -> psi.RunConfig:
    options = {**RUN_OPTIONS, "data": str(images), "top_k": 8, "pool": 24, **changes}
    return psi.RunConfig.from_options(**options)


LATENTS = [f"conv2={HERE}:of_maps"]


def test_latents_are_a_layer_of_the_run(images: Path, tmp_path: Path) -> None:
    layers = ["conv2", "latents.*"]
    run = psi.run(config(images, layers=layers, latents=LATENTS, out=str(tmp_path)))
    found = run.channels.group_by("layer").aggregate([("channel", "count")]).to_pydict()
    # Globs take the autoencoder's own modules no more than they take attention's tuples.
    assert dict(zip(found["layer"], found["channel_count"], strict=True)) == {
        "conv2": 8, "latents.conv2": 20,
    }  # fmt: skip
    fields = run.manifest["stages"]["patches"]["fields"]
    assert fields["latents.conv2"] == fields["conv2"]
    depth = run.manifest["layers"]["depth"]
    assert depth == {"conv2": 2 / 3, "latents.conv2": 2 / 3}
    (note,) = [line for line in summarise(run)["notes"] if "left out" in line]
    assert note.startswith("3 layers found by globs left out (latents.conv2.sae: the model does")
    # Without the autoencoder, or with another one, it is another run.
    with pytest.raises(RunFolderError, match="holds another run; got weights"):
        psi.run(config(images, layers=["conv2"], out=str(tmp_path)))


def test_latents_that_are_not_scored_are_refused(images: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"not scored; got latents\.conv2; .* add latents\.conv2"):
        check(config(images, layers=["conv2"], latents=LATENTS, out=str(tmp_path / "run")))
    assert not (tmp_path / "run").exists()


def test_all_layers(images: Path, tmp_path: Path) -> None:
    inputs = check(config(images, layers=["all"], out=str(tmp_path / "run")))
    assert inputs.layers == ["conv1", "conv2", "head"]
    assert inputs.chosen.depths == {"conv1": 1 / 3, "conv2": 2 / 3, "head": 1.0}
