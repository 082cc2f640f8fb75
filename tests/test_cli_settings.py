"""``--config``: the settings that a run folder holds repeat it; ``--json`` everywhere."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer

from psi_engine.artifacts import CONFIG
from psi_engine.cli import app
from psi_engine.tables import SCORED
from tests import toy
from tests.test_cli import call, call_run


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy.write_images(tmp_path_factory.mktemp("images"), 30)


@pytest.fixture(scope="module")
def first(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "x"
    options = {"seed": 3, "sites": "all", "channels": "conv2:1-4", "layers": "conv2,head"}
    done = call_run(out, images, "--quiet", **options, preset="paper")
    assert done.exit_code == 0, done.stderr
    return out


def bits(folder: Path) -> dict[str, bytes]:
    return {name: (folder / f"{name}.parquet").read_bytes() for name in SCORED}


def settings(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "manifest.json").read_text())["config"]


def test_the_file_of_a_run_repeats_it_bit_for_bit(first: Path, tmp_path: Path) -> None:
    done = call("run", "--config", first / CONFIG, "--out", tmp_path / "y", "--quiet")
    assert done.exit_code == 0, done.stderr
    assert bits(tmp_path / "y") == bits(first)
    changed = {"out": str(tmp_path / "y")}
    assert settings(tmp_path / "y") == settings(first) | changed
    mine, theirs = (tomllib.loads((x / CONFIG).read_text()) for x in (tmp_path / "y", first))
    assert mine == theirs | changed


def test_options_win_over_the_file_of_a_run(first: Path, tmp_path: Path) -> None:
    options = ("--seed", 4, "--replicates", 25, "--channels", "conv2:0", "--quiet")
    done = call("run", "--config", first / CONFIG, "--out", tmp_path / "y", *options)
    assert done.exit_code == 0, done.stderr
    found, before = settings(tmp_path / "y"), settings(first)
    assert (found["mine"]["seed"], found["score"]["seed"]) == (4, 4)
    assert found["score"]["replicates"] == 25
    assert found["channels"] == ["conv2:0"]
    assert found["score"] | {"seed": 3, "replicates": 20} == before["score"]
    assert found["patches"] == before["patches"]


def test_a_preset_over_a_file_that_leaves_it_nothing_is_refused(
    first: Path, tmp_path: Path
) -> None:
    given = ("--config", first / CONFIG, "--out", tmp_path / "y")
    done = call("run", *given, "--preset", "calibrated")
    assert done.exit_code == 2
    assert "the preset would change nothing; got --preset calibrated and " in done.stderr
    assert not (tmp_path / "y").exists()
    (tmp_path / "some.toml").write_text("[score]\nk_max = 3\n")
    done = call("run", "--config", tmp_path / "some.toml", "--preset", "paper")
    assert "no model named" in done.stderr


def test_a_file_of_embeddings_is_scored_again_from_its_settings(tmp_path: Path) -> None:
    z = np.random.default_rng(0).standard_normal((5, 12, 8)).astype(np.float32)
    np.savez(tmp_path / "z.npz", embeddings=z)
    np.save(tmp_path / "labels.npy", np.arange(60).reshape(5, 12) % 3)
    given = ("--labels", tmp_path / "labels.npy", "--preset", "paper", "--seed", 5)
    done = call("score", tmp_path / "z.npz", *given, "--device", "cpu", "--quiet")
    assert done.exit_code == 0, done.stderr
    home = tmp_path / "z-psi"
    again = ("score", "--config", home / CONFIG, "--out", tmp_path / "again", "--quiet")
    assert call(*again).exit_code == 0
    assert bits(tmp_path / "again") == bits(home)
    assert call(*again[:-2], tmp_path / "other", "--replicates", 30, "--quiet").exit_code == 0
    found = settings(tmp_path / "other")
    assert found == settings(home) | {"replicates": 30}
    for text, message in (
        ("[score]\nk_mix = 3", r"unknown option of [score]; got 'k_mix'; expected one of k_m"),
        ("top_k = 3", "unknown option of [score]; got 'top_k'"),
        ("score = 3", "score is no section of settings"),
    ):
        (tmp_path / "bad.toml").write_text(text)
        bad = call("score", tmp_path / "z.npz", "--config", tmp_path / "bad.toml")
        assert bad.exit_code == 2
        assert message in bad.stderr
    nothing = call("score", "--quiet")
    assert nothing.exit_code == 2
    assert "no file named; expected psi-engine score FILE" in nothing.stderr


def test_every_command_speaks_json() -> None:
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    assert {"run", "merge", "demo", "score", "swap", "validate", "bench", "show", "doctor"} <= set(
        commands
    )
    silent = [
        name
        for name, command in commands.items()
        if not any("--json" in option.opts for option in command.params)
    ]
    assert silent == []
