"""What a suite's file may say, and how a mistake in it is named before any work."""

from __future__ import annotations

from pathlib import Path

import pytest

from psi_engine.bench import read_plan
from psi_engine.errors import InputError

SHARED = """
data = "pictures"
encoder = "tests.toy:encoder"
top-k = 12
pool = 60
seeds = [0, 3]

"""
MODEL = """
[[models]]
model = "tests.toy:model"
layers = ["conv2"]
"""


def write(folder: Path, text: str) -> Path:
    file = folder / "suite.toml"
    file.write_text(text, encoding="utf-8")
    return file


def test_models_times_presets_times_seeds(tmp_path: Path) -> None:
    weights = tmp_path / "own weights.pth"
    weights.touch()
    text = f"""{SHARED}{MODEL}
        [[models]]
        name = "untrained"
        model = "tests.toy:model"
        weights = "none"
        layers = ["conv*", "head"]
        presets = ["paper", "calibrated"]
        seeds = [5]
        top_k = 20

        [[models]]
        model = "tests.toy:model"
        weights = "{weights}"
        layers = ["head"]
        seeds = [1]
        """
    plan = read_plan(write(tmp_path, text))
    assert plan.folder == Path("suites/suite")
    assert [entry.key for entry in plan.entries] == [
        "tests.toy-model/calibrated-seed0",
        "tests.toy-model/calibrated-seed3",
        "untrained/paper-seed5",
        "untrained/calibrated-seed5",
        "tests.toy-model-own-weights/calibrated-seed1",
    ]
    first, second, paper, calibrated, _ = (entry.config for entry in plan.entries)
    assert first.out == "suites/suite/runs/tests.toy-model/calibrated-seed0"
    assert (first.mine.seed, first.score.seed, second.mine.seed, second.score.seed) == (0, 0, 3, 3)
    assert (first.mine.top_k, paper.mine.top_k, first.mine.pool) == (12, 20, 60)
    assert (paper.score.solver, paper.mine.sites, calibrated.score.solver) == (
        "lloyd", "all", "hartigan",
    )  # fmt: skip
    assert (paper.weights, paper.layers) == ("none", ["conv*", "head"])
    assert read_plan(tmp_path / "suite.toml", "elsewhere").folder == Path("elsewhere")
    named = read_plan(write(tmp_path, f'out = "here"\n{SHARED}{MODEL}'))
    assert named.folder == Path("here")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("data = [", "not TOML; got .*suite.toml: "),
        (SHARED, r"names no models; got no \[\[models\]\]"),
        (SHARED + 'models = "resnet50"', "names no models; got str"),
        (SHARED + "\n[models]\nmodel = 'a'", "names no models; got dict"),
        (SHARED + MODEL + "encodr = 'x'", "models 1: unknown option 'encodr'; expected one of enc"),
        ("max_imagse = 3" + MODEL, "unknown option 'max_imagse'; expected one of max_images"),
        (SHARED + MODEL + "seed = 3", r"models 1: seed is given as a list.*seeds = \[…\]"),
        ("preset = 'paper'" + MODEL, "preset is given as a list"),
        (SHARED + MODEL + "out = 'x'", "models 1: unknown option 'out'"),
        (SHARED + MODEL + MODEL, "two models of the name 'tests.toy-model'; got models 1 and 2"),
        (SHARED + "[[models]]\nlayers = ['x']", "models 1: no model named"),
        (SHARED + "[[models]]\nname = 'a'\nlayers = ['x']", r"models 1 \(a\): no model named"),
        (SHARED + "[[models]]\nmodel = 'resnet18'", r"\(resnet18\): no layers named"),
        (SHARED + MODEL + "name = '../x'", "name cannot be a folder's; got '../x'"),
        (SHARED + MODEL + "name = 3", "name cannot be a folder's; got 3"),
        (SHARED + MODEL + "seeds = 3", "seeds is not a list of different values; got 3"),
        (SHARED + MODEL + "seeds = []", "seeds is not a list of different values"),
        (SHARED + MODEL + "seeds = [1, 1]", "seeds is not a list of different values"),
        (SHARED + MODEL + "seeds = [-1]", "bad seed; got -1"),
        (SHARED + MODEL + "seeds = [true]", "bad seed; got True"),
        (SHARED + MODEL + "presets = ['best']", "unknown preset; got 'best'; expected one of pap"),
        (SHARED + MODEL + "replicates = 1", r"\(tests.toy-model\): replicates is too small"),
        (SHARED + MODEL + "weights = 'no.pth'", r"\(tests.*-no\): no weights file no.pth"),
        (SHARED + "[[models]]\nmodel = 'tests.toy:mdel'\nlayers = ['x']", "no factory 'mdel'"),
        (SHARED + MODEL + "encoder = 'tests.toy:encodr'", "no factory 'encodr'"),
    ],
)  # fmt: skip
def test_mistakes_are_named_before_any_work(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_plan(write(tmp_path, text))
    assert [path.name for path in tmp_path.iterdir()] == ["suite.toml"]


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="the suite's file is not there"):
        read_plan(tmp_path / "none.toml")
