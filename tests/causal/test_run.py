"""The whole command on a toy run: what is swapped, what is written, what resumes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import torch
from torch import nn
from typer.testing import CliRunner

import psi_engine as psi
from psi_engine.causal import CONDITIONS, SwapConfig, read_swaps, summarise, swap
from psi_engine.causal import run as causal_run
from psi_engine.cli import app
from psi_engine.data import Preprocess
from psi_engine.errors import InputError, RunFolderError
from psi_engine.validation.part import Options
from psi_engine.validation.run_parts import validate_run
from tests import toy

QUICK = {"per_channel": 4, "bootstrap": 50}
LISTED = ("conv2:1-4,7", "head:0")


class Planted(nn.Module):
    """Units that see 8 × 8 pixels. 0: red or green, whichever is more; 1: red; 2: blue."""

    def __init__(self) -> None:
        super().__init__()
        self.units = nn.AvgPool2d(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        own = self.units(torch.stack([c - x.sum(1) / 3 for c in x.unbind(1)], 1))
        red, green, blue = own.unbind(1)
        return torch.stack([torch.maximum(red, green), red, blue], 1)


def planted() -> tuple[nn.Module, Preprocess]:
    return nn.Sequential(Planted()), toy.PREPROCESS


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy.write_images(tmp_path_factory.mktemp("images"), 48)


def make(images: Path, out: Path, **changes: Any) -> Path:
    options = {
        "model": "tests.toy:model", "layers": ["conv2", "head"], "encoder": "tests.toy:encoder",
        "patch": 16, "top_k": 12, "pool": 60, "replicates": 4, "restarts": 2, "subsamples": 0,
        "device": "cpu", "data": str(images), "out": str(out),
    }  # fmt: skip
    return psi.run(psi.RunConfig.from_options(**{**options, **changes})).path


@pytest.fixture(scope="module")
def finished(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(images, tmp_path_factory.mktemp("run") / "run")


@pytest.fixture(scope="module")
def swapped(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("swapped") / "run"
    shutil.copytree(finished, out)
    swap(out, SwapConfig(channels=LISTED, **QUICK))
    return out


def bits(path: Path) -> list[bytes]:
    return [(path / name).read_bytes() for name in ("causal.parquet", "causal_summary.parquet")]


def test_every_host_has_a_row_per_blend_and_condition(swapped: Path) -> None:
    table, tests = read_swaps(psi.open_run(swapped))
    assert len(table) == 5 * 2 * 4 * 2 * 5
    rows = table.to_pylist()
    assert [r["condition"] for r in rows[:5]] == list(CONDITIONS)
    assert {r["layer"]: r["x1"] - r["x0"] for r in rows} == {"conv2": 10, "head": 10}
    for row in rows:
        assert row["donor_image"] != row["host_image"]
        assert row["delta"] == row["after"] - row["before"]
        if row["condition"] == "ablate-elsewhere":
            assert row["donor_image"] is row["donor_x0"] is row["donor_channel"] is None
        if row["hosts"] == "random":
            assert row["host_cluster"] is None
    assert len(tests) == (5 + 2 + 1) * 2 * 2 * 4


def test_an_untouched_host_has_the_value_that_was_mined(swapped: Path) -> None:
    run = psi.open_run(swapped)
    mined = {
        tuple(r[x] for x in ("layer", "channel", "kind", "rank")): r for r in run.sites.to_pylist()
    }
    ranges = {
        (r["layer"], r["channel"]): r["activation_max"] - r["activation_min"]
        for r in run.channels.to_pylist()
    }
    for row in read_swaps(run)[0].to_pylist():
        site = mined[row["layer"], row["channel"], row["hosts"], row["host_rank"]]
        assert row["before"] == site["activation"]
        assert (row["host_image"], row["host_u"], row["host_v"]) == (
            site["image_id"], site["u"], site["v"],
        )  # fmt: skip
        span = ranges[row["layer"], row["channel"]]
        assert row["delta_units"] == pytest.approx(row["delta"] / span, rel=1e-6)


def test_the_rest_is_listed_with_reasons(swapped: Path) -> None:
    stage = psi.open_run(swapped).manifest["stages"]["swap"]
    assert [(x["layer"], x["channel"]) for x in stage["skipped"]] == [("conv2", 7)]
    assert stage["skipped"][0]["reason"].startswith("dead channel")
    assert (stage["channels"], stage["swaps"], stage["nonfinite"]) == (5, 400, 0)
    assert not (swapped / "causal.partial").exists()
    json.dumps(summarise(psi.open_run(swapped)), allow_nan=False)


def test_a_channels_swaps_depend_on_nothing_beside_them(
    swapped: Path, finished: Path, tmp_path: Path
) -> None:
    shutil.copytree(finished, tmp_path / "run")
    config = SwapConfig(
        channels=("conv2:3",), per_channel=3, bootstrap=50, blend="feathered", hosts="random"
    )
    alone, _ = read_swaps(swap(tmp_path / "run", config))
    whole = pq.read_table(swapped / "causal.parquet")
    ours = whole.filter(
        (pc.field("layer") == "conv2") & (pc.field("channel") == 3)
        & (pc.field("hosts") == "random") & (pc.field("blend") == "feathered")
    )  # fmt: skip
    assert alone.to_pylist() == ours.to_pylist()[:15]


def test_a_killed_command_goes_on_with_the_same_bits(
    swapped: Path, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(finished, tmp_path / "run")
    config = SwapConfig(channels=LISTED, **QUICK)
    monkeypatch.setattr(causal_run, "BLOCK", 2)
    made = causal_run._swap_block
    calls: list[int] = []

    def dying(block: Any, *rest: Any) -> Any:
        if len(calls) == 2:
            raise KeyboardInterrupt
        calls.append(block[0].channel)
        return made(block, *rest)

    monkeypatch.setattr(causal_run, "_swap_block", dying)
    with pytest.raises(KeyboardInterrupt):
        swap(tmp_path / "run", config)
    with pytest.raises(RunFolderError, match="stage swap running"):
        read_swaps(psi.open_run(tmp_path / "run"))
    kept = sorted((tmp_path / "run/causal.partial").rglob("*.parquet"))
    assert [path.name for path in kept] == ["00000.parquet", "00001.parquet"]
    later: list[int] = []
    monkeypatch.setattr(
        causal_run, "_swap_block", lambda block, *rest: (later.append(1), made(block, *rest))[1]
    )
    told: list[tuple[str, int, int]] = []
    swap(tmp_path / "run", config, progress=lambda *news: told.append(news))
    assert len(later) == 1
    assert bits(tmp_path / "run") == bits(swapped)
    done = [news[1] for news in told if news[0] == "swapping"]
    assert done == sorted(done)
    assert done[-1] == told[-1][2] == 5 * 2 * 4 * 11
    monkeypatch.setattr(causal_run, "_swap_block", None)
    swap(tmp_path / "run", config)  # done: nothing runs


def test_new_scores_make_the_swaps_out_of_date(images: Path, swapped: Path, tmp_path: Path) -> None:
    shutil.copytree(swapped, tmp_path / "run")
    make(images, tmp_path / "run", replicates=5)
    with pytest.raises(RunFolderError, match="stage swap not begun"):
        read_swaps(psi.open_run(tmp_path / "run"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"channels": ("conv9",)}, "no such layer in the run; got 'conv9'; expected conv2, head"),
        ({"channels": ("conv2:99",)}, "no such channels in conv2"),
        ({"channels": ("conv2:7",)}, "no channel can be swapped; got conv2:7 dead channel"),
        ({"swap_patch": 11}, "the swapped square is too large; got 11 pixels of 32"),
        ({"hosts": "bottom"}, "unknown hosts"),
        ({"blend": "soft"}, "unknown blend"),
        ({"top": 0}, "top is out of range"),
        ({"per_channel": 1}, "per_channel is out of range"),
    ],
)
def test_mistakes_are_told_before_any_work(
    finished: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], message: str
) -> None:
    monkeypatch.setattr(causal_run, "reopen", None)
    with pytest.raises(InputError, match=message):
        swap(finished, SwapConfig(**options))
    assert "swap" not in psi.open_run(finished).manifest["stages"]


def test_without_a_reservoir_only_top_hosts_are_swapped(images: Path, tmp_path: Path) -> None:
    path = make(images, tmp_path / "run", reservoir=0, layers=["conv2"], channels=["conv2:1-3"])
    with pytest.raises(InputError, match="no random hosts; got a run with reservoir = 0"):
        swap(path, SwapConfig(hosts="random"))
    with pytest.raises(
        InputError, match=r"channels of conv2 that the run does not hold; got \[4\]"
    ):
        swap(path, SwapConfig(channels=("conv2:4",)))
    found = summarise(swap(path, SwapConfig(**QUICK)))
    assert {row["hosts"] for row in found["tests"]} == {"top"}
    assert found["notes"] == ["no random hosts: the run mined no random sites (reservoir = 0)"]


def test_the_command_prints_tests_and_paths(swapped: Path) -> None:
    listed = ",".join(LISTED)
    command = [
        "swap",
        str(swapped),
        "--channels",
        listed,
        "--per-channel",
        "4",
        "--bootstrap",
        "50",
    ]
    told = CliRunner().invoke(app, command)
    assert told.exit_code == 0, told.output
    assert told.stdout.split() == [
        str(swapped / f"causal{end}.parquet") for end in ("", "_summary")
    ]
    assert "left out: conv2:7 dead channel" in told.stderr
    assert "conv2, random hosts" in told.stderr
    assert max(map(len, told.stderr.splitlines())) <= 80
    found = json.loads(CliRunner().invoke(app, [*command, "--json"]).stdout)
    assert found["swaps"] == 400
    assert CliRunner().invoke(app, ["swap", str(swapped), "--top", "0"]).exit_code == 2


def test_the_part_of_the_validation_takes_the_swaps_or_makes_them(
    swapped: Path, tmp_path: Path
) -> None:
    shutil.copytree(swapped, tmp_path / "run")
    (first,) = validate_run(tmp_path / "run", ["causal"], Options(bootstrap=50))
    assert first.status == "done", first.reason
    made = pq.read_table(tmp_path / "run/validation/causal-summary.parquet")
    assert made.equals(read_swaps(psi.open_run(swapped))[1])
    assert [Path(name).name for name in first.figures] == ["causal.png", "causal.svg"]
    assert "conv2:7 was left out: dead channel" in first.notes[0]
    assert [line.split(",")[0] for line in first.headline] == ["top hosts", "random hosts"]
    assert validate_run(tmp_path / "run", ["causal"])[0].status == "kept"
    swap(tmp_path / "run", SwapConfig(channels=("conv2:1,2",), hosts="top", **QUICK))
    assert validate_run(tmp_path / "run", ["causal"])[0].status == "done"


def test_planted_units_react_as_planted(tmp_path: Path) -> None:
    """Either colour excites the unit of two colours, a third does not."""
    home = toy.write_images(tmp_path / "images", 120)
    path = make(
        home, tmp_path / "run", model="tests.causal.test_run:planted", layers=["0"], patch=8,
        top_k=40,
    )  # fmt: skip
    config = SwapConfig(channels=("0",), blend="hard", swap_patch=10, per_channel=16)
    tests = read_swaps(swap(path, config))[1].to_pylist()
    unit = {
        (r["hosts"], r["control"]): r
        for r in tests
        if r["level"] == "channel" and r["channel"] == 0
    }
    for hosts in ("top", "random"):
        assert unit[hosts, "random"]["mean_difference"] > 0.9
        assert unit[hosts, "random"]["t_p_holm"] < 1e-3
        assert abs(unit[hosts, "non-aligned"]["mean_difference"]) < 0.1
        # the field is smaller than the square: what happens elsewhere is not seen
        for control in ("shuffled-position", "ablate-elsewhere"):
            assert unit[hosts, control]["mean_control"] == 0
    assert unit["random", "shuffled-position"]["mean_difference"] > 0.4
    assert np.isfinite(unit["top", "random"]["dz"])
