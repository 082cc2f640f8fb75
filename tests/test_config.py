from __future__ import annotations

import pytest

from psi_engine.config import MineConfig, PatchConfig, RunConfig, ScoreConfig
from psi_engine.errors import InputError


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (MineConfig, {"top_k": 3}, "top_k is too small; got 3; expected at least 4"),
        (MineConfig, {"sites": "some"}, "unknown sites; got 'some'; expected one of per-im"),
        (MineConfig, {"precision": "fp8"}, "unknown precision"),
        (MineConfig, {"batch_size": 0}, "batch_size is too small"),
        (MineConfig, {"pool": -1}, "pool is too small"),
        (PatchConfig, {"patch": 0}, "patch is too small"),
        (PatchConfig, {"patch": "huge"}, "unknown patch"),
        (PatchConfig, {"energy": 1.0}, "energy is out of range"),
        (ScoreConfig, {"k_min": 1}, "k_min is too small"),
        (ScoreConfig, {"k_min": 4, "k_max": 3}, "k_max is below k_min; got 3 < 4"),
        (ScoreConfig, {"replicates": 1}, "replicates is too small; got 1; expected at least 2"),
        (ScoreConfig, {"s_null": "gaussian"}, "unknown s_null"),
        (ScoreConfig, {"alpha": 0.0}, "alpha is out of range"),
        (ScoreConfig, {"memory": 5}, "memory is too small"),
        (ScoreConfig, {"replicates": 100.0}, "replicates is not a whole number; got 100.0"),
        (ScoreConfig, {"memory": 2e9}, "memory is not a whole number"),
        (ScoreConfig, {"k_max": 5.0}, "k_max is not a whole number"),
        (ScoreConfig, {"restarts": 2.5}, "restarts is not a whole number"),
        (ScoreConfig, {"alpha": "0.05"}, "alpha is not a number; got '0.05'"),
        (MineConfig, {"top_k": 50.0}, "top_k is not a whole number"),
        (RunConfig, {"model": "m", "layers": []}, "no layers named"),
        (RunConfig, {"model": "m", "layers": "layer4"}, "no layers named; got 'layer4'"),
        (RunConfig, {"model": "m", "layers": ["a"], "max_images": 3}, "max_images is too small"),
        (RunConfig, {"model": "m", "layers": ["a"], "backend": "jax"}, "unknown backend"),
    ],
)  # fmt: skip
def test_bad_settings_are_refused_when_made(kind: type, options: dict, message: str) -> None:
    with pytest.raises(InputError) as caught:
        kind(**options)
    assert message in str(caught.value)


def test_flat_options_find_their_stage_and_the_seed_reaches_all() -> None:
    config = RunConfig.from_options(
        model="m", layers=["a"], seed=7, top_k=9, patch=12, k_max=3, workers=None
    )
    assert (config.mine.seed, config.score.seed) == (7, 7)
    assert (config.mine.top_k, config.patches.patch, config.score.k_max) == (9, 12, 3)
    assert config.workers == 0


def test_unknown_option_names_the_close_ones() -> None:
    with pytest.raises(InputError, match="'replicate'.*replicates"):
        RunConfig.from_options(model="m", layers=["a"], replicate=3)


def test_missing_model_is_named() -> None:
    with pytest.raises(InputError, match="no model named; give --model, such as resnet50"):
        RunConfig.from_options()
    with pytest.raises(InputError, match="no layers named; give --layers, such as layer4"):
        RunConfig.from_options(model="m")


def test_paper_preset_is_section_4_of_the_paper() -> None:
    config = RunConfig.from_options(preset="paper", model="resnet50", layers=["layer4"])
    assert (config.mine.top_k, config.mine.sites, config.image_size) == (50, "all", 224)
    assert config.patches.patch == "theoretical"
    score = config.score
    assert (score.k_min, score.k_max, score.replicates, score.solver) == (2, 5, 20, "lloyd")
    assert (score.s_null, score.q_null, score.d_null) == (
        "rotation",
        "permutation",
        "unrelated-text",
    )
    assert (score.d_measure, score.d_level) == ("gap", "prompt")


def test_options_win_over_the_preset() -> None:
    config = RunConfig.from_options(
        preset="paper", model="m", layers=["a"], replicates=99, patch=32
    )
    assert (config.score.replicates, config.patches.patch) == (99, 32)


def test_default_score_settings_are_the_calibrated_preset() -> None:
    assert ScoreConfig() == ScoreConfig.preset("calibrated")
