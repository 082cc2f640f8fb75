"""Which channels are swapped."""

from __future__ import annotations

import pyarrow as pa
import pytest
import torch

from psi_engine.causal.select import TOP, select_channels
from psi_engine.errors import InputError, ModelError
from tests.causal.planned import layer_plan

PSI = [-3.0, -1.0, None, -1.0, -0.5, -9.0]


class FakeRun:
    """A run's table of channels: layer ``a`` as in PSI, ``0.b`` without any score."""

    channels = pa.table(
        {
            "layer": ["a"] * 6 + ["0.b"] * 6,
            "channel": [10, 11, 12, 13, 14, 15] * 2,
            "log_psi": pa.array([*PSI, *[None] * 6], pa.float64()),
        }
    )


SITES = layer_plan(channels=torch.arange(10, 16)).sites
LAYERS = {"a": SITES, "0.b": SITES}


def chosen(*specs: str, top: int | None = None) -> dict[str, list[int]]:
    return select_channels(FakeRun(), LAYERS, specs, top)  # type: ignore[arg-type]


def test_the_highest_psi_of_each_layer_ties_by_number() -> None:
    assert chosen(top=2) == {"a": [1, 4]}
    assert chosen(top=3) == {"a": [1, 3, 4]}
    assert TOP >= 5
    assert chosen() == {"a": [0, 1, 3, 4, 5]}  # never the one without a PSI


def test_layers_and_lists_by_name() -> None:
    assert chosen("a:12,15,0.b:10-11") == {"a": [2, 5], "0.b": [0, 1]}
    assert chosen("a:12", "a:15") == {"a": [2, 5]}
    assert chosen("0.b, a:15") == {"0.b": list(range(6)), "a": [5]}
    assert chosen("a:15,0.b") == {"a": [5], "0.b": list(range(6))}
    assert chosen("a:10-12", top=1) == {"a": [1]}


def test_what_the_run_does_not_hold_is_told() -> None:
    with pytest.raises(InputError, match="no such layer in the run; got 'c'; expected a, 0.b"):
        chosen("c")
    with pytest.raises(ModelError, match="layer that is not in the run: 'c'"):
        chosen("c:1")
    with pytest.raises(InputError, match=r"channels of a that the run does not hold; got \[3\]"):
        chosen("a:3,10")
    with pytest.raises(InputError, match="no channel has a PSI to choose the highest by"):
        chosen("0.b", top=3)
