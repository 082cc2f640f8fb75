"""The demo's planted units: their patches do what was planted."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import psi_engine as psi
from psi_engine import demo
from psi_engine.causal import SwapConfig, read_swaps, swap


@pytest.mark.slow
def test_units_of_several_classes_prefer_their_clusters_and_those_of_one_do_not(
    tmp_path: Path,
) -> None:
    """A patch of another class lowers a picture's unit only where clusters are classes."""
    options = {
        **demo.RUN_OPTIONS, "layers": ("planted",), "out": str(tmp_path / "run"), "device": "cpu",
        "channels": ("planted:0-11,32-43,64-75,128-139",), "replicates": 100, "subsamples": 0,
    }  # fmt: skip
    run = psi.run(psi.RunConfig.from_options(**options))
    config = SwapConfig(channels=("planted",), blend="hard", bootstrap=100)
    tests = read_swaps(swap(run.path, config))[1].to_pylist()
    kinds = demo.planted_kinds()

    def differences(kind: str, hosts: str, control: str) -> list[float]:
        found = [
            row["mean_difference"]
            for row in tests
            if row["level"] == "channel"
            and kinds[row["channel"]].startswith(kind)
            and (row["hosts"], row["control"]) == (hosts, control)
        ]
        assert len(found) >= 8
        return found

    poly, mono = (differences(kind, "top", "non-aligned") for kind in ("poly", "mono"))
    assert np.mean(poly) > 0.04
    assert np.mean(np.array(poly) > 0) > 0.8
    assert abs(np.mean(mono)) < 0.02
    for control in ("random", "shuffled-position", "ablate-elsewhere"):
        assert np.mean(differences("poly", "random", control)) > 0.02
