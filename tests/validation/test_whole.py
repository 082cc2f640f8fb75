"""Everything that a validation has, on the demo world."""

from __future__ import annotations

from pathlib import Path

import pytest

from psi_engine import demo
from psi_engine.causal import SwapConfig, swap
from psi_engine.config import RunConfig
from psi_engine.pipeline import run
from psi_engine.validation import Options, parts, validate_run


@pytest.mark.slow
def test_every_part_is_done_and_drawn_on_the_demo_world(tmp_path: Path) -> None:
    options = dict(demo.RUN_OPTIONS) | {
        "layers": ["stage3", "stage4"], "channels": ["stage3:0-5", "stage4:0-5"],
        "replicates": 60, "subsamples": 0, "out": str(tmp_path / "run"),
    }  # fmt: skip
    made = run(RunConfig.from_options(**options))
    swap(made.path, SwapConfig(top=2, per_channel=4, bootstrap=50))
    few = Options(
        bootstrap=30, replicates=30, channel_replicates=10, null_channels=10, examples=1, sets=10,
        units=10,
    )  # fmt: skip
    found = validate_run(made.path, options=few)
    assert [outcome.part for outcome in found] == list(parts.NAMES)
    became = {outcome.part: (outcome.status, outcome.reason) for outcome in found}
    assert became == dict.fromkeys(parts.NAMES, ("done", ""))
    for outcome in found:
        assert outcome.figures, outcome.part
        for file in (*outcome.figures, *outcome.tables):
            assert (made.path / file).stat().st_size > 0
        assert any(file.endswith(".svg") for file in outcome.figures)
    again = validate_run(made.path, options=few)
    assert {outcome.status for outcome in again} == {"kept"}
