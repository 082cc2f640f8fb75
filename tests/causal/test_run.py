"""The whole command on a toy run: what is swapped, what is written, what resumes."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
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
from psi_engine import artifacts
from psi_engine.causal import CONDITIONS, SwapConfig, read_swaps, summarise, swap
from psi_engine.causal import run as causal_run
from psi_engine.causal.summary import NOT_COMPARED
from psi_engine.cli import app
from psi_engine.data import Preprocess
from psi_engine.errors import InputError, RunFolderError
from psi_engine.stored import load_stored
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
    assert len(tests) == (5 + 2 + 1) * 2 * (4 + 3)


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
    assert stage["notes"] == [NOT_COMPARED]
    assert stage["drift"] == 0.0
    json.dumps(summarise(psi.open_run(swapped)), allow_nan=False)


def test_other_resamples_test_the_swaps_that_are_there(
    swapped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(swapped, tmp_path / "run")
    monkeypatch.setattr(causal_run, "_swap_block", None)
    monkeypatch.setattr(causal_run, "reopen_images", None)
    config = SwapConfig(channels=LISTED, per_channel=4, bootstrap=60)
    before, after = bits(swapped), bits(swap(tmp_path / "run", config).path)
    assert before[0] == after[0]
    assert before[1] != after[1]
    assert psi.open_run(tmp_path / "run").manifest["stages"]["swap"]["config"]["bootstrap"] == 60
    with pytest.raises(TypeError):  # other swaps are made anew
        swap(tmp_path / "run", replace(config, seed=1))


def test_swaps_need_no_encoder(finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished, tmp_path / "run")
    path = tmp_path / "run/manifest.json"
    manifest = json.loads(path.read_text())
    manifest["config"]["encoder"] = "tests.toy:gone"
    path.write_text(json.dumps(manifest))
    swap(tmp_path / "run", SwapConfig(channels=("head:0",), hosts="top", **QUICK))
    manifest["fingerprints"]["weights"] = "0" * 64
    path.write_text(json.dumps(manifest))
    with pytest.raises(RunFolderError, match="made with other weights"):
        swap(tmp_path / "run", SwapConfig(channels=("head:0",), hosts="top", **QUICK))


def test_what_mining_rounded_otherwise_is_told(finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished, tmp_path / "run")
    stored = load_stored(tmp_path / "run")
    layer = stored.layers["conv2"].sites
    rank = int((layer.top.values[3].isfinite()).sum()) - 1
    span = float(layer.stats.maximum[3] - layer.stats.minimum[3])
    mined = artifacts.read_mined(tmp_path / "run/mining.safetensors")
    mined["conv2"].top.values[3, : rank + 1] += 0.25 * span
    artifacts.write_mined(tmp_path / "run/mining.safetensors", mined)
    config = SwapConfig(channels=("conv2:3",), hosts="top", **QUICK)
    stage = swap(tmp_path / "run", config).manifest["stages"]["swap"]
    assert stage["drift"] == pytest.approx(0.25, rel=1e-5)
    assert stage["notes"][0].startswith("untouched, activations differ from those mined in fp32")


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
    monkeypatch.setattr(causal_run, "reopen_images", None)
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
    assert [Path(name).name for name in first.figures] == [
        "causal.png",
        "causal.svg",
        "causal.pdf",
    ]
    assert "conv2:7 was left out: dead channel" in first.notes[0]
    assert first.notes[-1].startswith("swapped with hosts both, blend both, 4 hosts")
    assert [line.split(",")[0] for line in first.headline] == ["top hosts", "random hosts"]
    assert "of the range; aligned minus: non-aligned " in first.headline[0]
    assert "of the range; aligned minus: random " in first.headline[1]
    assert validate_run(tmp_path / "run", ["causal"], Options(bootstrap=50))[0].status == "kept"
    (other,) = validate_run(tmp_path / "run", ["causal"], Options(seed=3, device="cuda"))
    assert other.status == "done"
    assert "not with seed 3, bootstrap 1000: psi-engine swap" in other.notes[-2]
    assert other.notes[-1] == "not on cuda: swaps run where the run did, on cpu"
    swap(tmp_path / "run", SwapConfig(channels=("conv2:1,2",), hosts="top", **QUICK))
    assert validate_run(tmp_path / "run", ["causal"])[0].status == "done"


def test_the_part_makes_swaps_where_there_are_none(finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished, tmp_path / "run")
    (made,) = validate_run(tmp_path / "run", ["causal"], Options(bootstrap=20, seed=2))
    assert made.status == "done", made.reason
    config = psi.open_run(tmp_path / "run").manifest["stages"]["swap"]["config"]
    assert (config["bootstrap"], config["seed"]) == (20, 2)
    assert made.notes[-1].endswith("seed 2, bootstrap 20 on cpu")


def test_the_part_leaves_swaps_that_were_broken_off_alone(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(finished, tmp_path / "run")
    made = causal_run._swap_block
    monkeypatch.setattr(causal_run, "BLOCK", 2)
    config = SwapConfig(channels=("conv2:1-4",), hosts="top", **QUICK)
    calls: list[int] = []

    def dying(*args: Any) -> Any:
        if calls:
            raise KeyboardInterrupt
        calls.append(1)
        return made(*args)

    def blocks() -> list[Path]:
        return sorted((tmp_path / "run/causal.partial").rglob("*.parquet"))

    monkeypatch.setattr(causal_run, "_swap_block", dying)
    with pytest.raises(KeyboardInterrupt):
        swap(tmp_path / "run", config)
    kept = blocks()
    with pytest.raises(InputError, match="swaps of other settings were broken off"):
        validate_run(tmp_path / "run", ["causal"])
    with pytest.raises(KeyboardInterrupt):  # swaps of other settings begin, and die too
        swap(tmp_path / "run", replace(config, seed=1))
    assert blocks() == kept
    assert len(kept) == 1
    monkeypatch.setattr(causal_run, "_swap_block", lambda *args: (calls.append(1), made(*args))[1])
    swap(tmp_path / "run", config)
    assert len(calls) == 2
    assert not blocks()


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
    assert abs(unit["top", "non-aligned"]["mean_difference"]) < 0.1
    assert ("random", "non-aligned") not in unit  # exchangeable by construction
    for hosts in ("top", "random"):
        assert unit[hosts, "random"]["mean_difference"] > 0.9
        assert unit[hosts, "random"]["t_p_holm"] < 1e-3
        # the field is smaller than the square: what happens elsewhere is not seen
        for control in ("shuffled-position", "ablate-elsewhere"):
            assert unit[hosts, control]["mean_control"] == 0
    assert unit["random", "shuffled-position"]["mean_difference"] > 0.4
    assert np.isfinite(unit["top", "random"]["dz"])
