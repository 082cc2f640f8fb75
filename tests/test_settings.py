"""Settings as TOML: what is written is read back, and repeats the run."""

from __future__ import annotations

import tomllib
from dataclasses import fields, replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from psi_engine.artifacts import CONFIG
from psi_engine.config import MineConfig, PatchConfig, RunConfig, ScoreConfig
from psi_engine.errors import InputError
from psi_engine.settings import read_settings, settings_docs, to_toml, write_run_settings

TEXT = st.text(st.characters(exclude_categories=["Cs"]))
PLAIN = TEXT | st.booleans() | st.integers() | st.floats(allow_nan=False)
VALUES = PLAIN | st.lists(PLAIN | st.lists(PLAIN, max_size=2), max_size=4)


@given(st.dictionaries(TEXT, VALUES | st.dictionaries(TEXT, VALUES, max_size=3), max_size=5))
def test_what_is_written_is_read_back(values: dict) -> None:
    found = tomllib.loads(to_toml(values))
    assert found == values
    assert repr(sorted(found.items())) == repr(sorted(values.items()))  # 1, 1.0 and true differ


def test_odd_values_by_hand() -> None:
    values = {
        "path": Path("/a b") / 'c"\\d',
        "tuple": ("x", 1, 2.5, True),
        "none": None,
        "quoted key": "\x7f \x00 \n \U0001f600 é = [#",
        "tiny": 1e-300,
        "endless": float("inf"),
    }
    text = to_toml(values)
    found = tomllib.loads(text)
    assert found.pop("path") == '/a b/c"\\d'
    assert found.pop("tuple") == ["x", 1, 2.5, True]
    assert "none" not in found
    assert "# none is not set" in text
    assert found == {name: values[name] for name in found}
    assert len(found) == 3


def test_what_toml_cannot_hold_is_said_and_never_breaks_the_file() -> None:
    text = to_toml({"data": "images\udcff", "next": 1})
    assert tomllib.loads(text) == {"next": 1}
    assert r"# data is no Unicode text and cannot stand here: 'images\udcff'" in text
    text.encode()
    with pytest.raises(InputError, match="x cannot be written as TOML; got set"):
        to_toml({"x": {1}})


def runs() -> list[RunConfig]:
    plain = RunConfig(model="resnet50", layers=["layer3", "layer4"])
    odd = replace(
        plain,
        layers=("a.b*", 'c"'),
        channels=("a:0-3,7",),
        data="C:\\images\n# no comment = 3",
        max_images=400,
        out="runs/ä",
        mine=MineConfig(top_k=9, seed=4, memory=1 << 21),
        patches=PatchConfig(patch=33, energy=0.1 + 0.2),
        score=ScoreConfig(seed=5, alpha=1e-7, memory=None, subsamples=3),
    )
    return [plain, odd, RunConfig.from_options("paper", model="m", layers=["x"], weights="none")]


@pytest.mark.parametrize("config", runs(), ids=["plain", "odd", "paper"])
def test_the_settings_of_a_run_come_back_as_they_were(config: RunConfig, tmp_path: Path) -> None:
    write_run_settings(tmp_path, config)
    assert [path.name for path in tmp_path.iterdir()] == [CONFIG]
    found = RunConfig.from_options(**read_settings(tmp_path / CONFIG))
    listed = {name: list(getattr(config, name)) for name in ("layers", "channels", "latents")}
    assert found == replace(config, **listed)


def test_every_setting_stands_in_the_file_with_what_it_means(tmp_path: Path) -> None:
    write_run_settings(tmp_path, runs()[0])
    lines = (tmp_path / CONFIG).read_text(encoding="utf-8").splitlines()
    assert max(map(len, lines)) <= 100
    for kind in (RunConfig, MineConfig, PatchConfig, ScoreConfig):
        docs = settings_docs(kind)
        for field in fields(kind):
            if field.name in ("mine", "patches", "score"):
                assert f"[{field.name}]" in lines
                continue
            stands = (f"{field.name} = ", f"# {field.name} is not set")
            place = [n for n, line in enumerate(lines) if line.startswith(stands)]
            assert place, field.name
            assert field.name == "seed" or lines[place[0] - 1].startswith("# "), field.name
            assert field.name == "seed" or docs[field.name]
    assert not any(":mod:" in line or "``" in line for line in lines)


def test_a_flat_option_wins_over_a_section_and_a_section_over_the_preset() -> None:
    sections = {"mine": {"top_k": 9, "seed": 3}, "score": {"k_max": 4, "replicates": 50}}
    given = {"model": "m", "layers": ["a"], **sections}
    config = RunConfig.from_options("paper", **given)
    assert (config.mine.top_k, config.mine.seed, config.mine.sites) == (9, 3, "all")
    assert (config.score.k_max, config.score.replicates, config.score.seed) == (4, 50, 0)
    config = RunConfig.from_options("paper", **given, top_k=12, seed=7, replicates=60)
    assert (config.mine.top_k, config.mine.seed, config.score.seed) == (12, 7, 7)
    assert (config.score.k_max, config.score.replicates) == (4, 60)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mine": {"top_q": 3}}, r"unknown option of \[mine\]; got 'top_q'; expected one of top_k"),
        ({"score": {"top_k": 3}}, r"unknown option of \[score\]; got 'top_k'"),
        ({"score": 3}, r"score is no section of settings; got 3; expected a table \[score\]"),
    ],
)
def test_a_wrong_section_is_named(options: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        RunConfig.from_options(model="m", layers=["a"], **options)


def test_a_broken_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_bytes(b"x = \xff")
    with pytest.raises(InputError, match=r"the config file is not TOML; got .*a\.toml"):
        read_settings(tmp_path / "a.toml")
    (tmp_path / "a.toml").write_text("top-k = 3\n[score]\nk-max = 4")
    assert read_settings(tmp_path / "a.toml") == {"top_k": 3, "score": {"k_max": 4}}
