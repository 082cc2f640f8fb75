"""A run of which no channel can be scored goes through every part."""

from __future__ import annotations

from pathlib import Path

import pytest

from psi_engine.config import RunConfig
from psi_engine.pipeline import run
from psi_engine.validation import Options, validate_run
from tests import toy


@pytest.mark.slow
def test_no_part_fails_where_every_channel_does(tmp_path: Path) -> None:
    config = RunConfig.from_options(
        model="tests.toy:model", layers=["conv2"], channels=["conv2:7"], patch=16, top_k=8,
        encoder="tests.toy:encoder", data=str(toy.write_images(tmp_path / "images", 24)), pool=40,
        replicates=20, subsamples=0, device="cpu", out=str(tmp_path / "run"),
    )  # fmt: skip
    made = run(config)
    assert made.channels["status"].to_pylist() == ["failed"]
    options = Options(bootstrap=20, channel_replicates=4, null_channels=6)
    found = {x.part: x for x in validate_run(made.path, options=options)}
    assert {x.status for x in found.values()} == {"done", "skipped"}, found
    assert found["peers"].figures == found["null-baseline"].figures == ()
