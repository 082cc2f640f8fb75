"""A wide network in a process of its own: mining keeps to the memory it was given."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SLACK = 64 << 20
"""Interpreter, libraries and the allocator's losses, as psi_engine.mining.passes says."""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the system is no Linux")
@pytest.mark.parametrize(
    "settings",
    [
        {"memory": 32 << 20},
        pytest.param(
            {"memory": 96 << 20, "precision": "exact-fp16", "top_k": 20, "bottom_k": 20},
            marks=pytest.mark.slow,
        ),
    ],
    ids=["fp32", "exact-fp16"],
)
def test_a_process_grows_no_further_than_it_may(settings: dict) -> None:
    command = [sys.executable, "-m", "tests.mining.grown", json.dumps(settings)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    allowed = settings["memory"] + SLACK
    assert found["saved"] > allowed  # what all layers keep would not fit
    assert found["mining"] < allowed
    assert found["whole"] < allowed + found["returned"]
