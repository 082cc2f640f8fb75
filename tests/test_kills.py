"""The settings in a run folder are those of the results in it, wherever a kill falls."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import psi_engine as psi
from psi_engine import artifacts
from psi_engine.bench.plan import Entry
from psi_engine.bench.suite import is_finished
from psi_engine.errors import RunFolderError
from psi_engine.stored import load_stored
from tests import toy
from tests.toy import RUN_OPTIONS


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy.write_images(tmp_path_factory.mktemp("images"), 24)


@pytest.mark.parametrize("changes", [{"top_k": 10}, {"patch": 14}, {"replicates": 5}])
def test_settings_and_results_agree_wherever_a_kill_falls(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]
) -> None:
    """Results made under other settings never pass for those of the settings in the manifest."""
    before = psi.RunConfig.from_options(**RUN_OPTIONS, data=str(images), out=str(tmp_path))
    psi.run(before)
    after = replace(psi.RunConfig.from_options(**{**RUN_OPTIONS, **changes}, data=str(images)),
                    out=str(tmp_path))  # fmt: skip
    entry = Entry("toy", "calibrated", 0, after)
    assert is_finished(replace(entry, config=before))
    assert not is_finished(entry)

    saved = artifacts.RunFolder.save

    def save_and_stop(self: artifacts.RunFolder) -> None:
        saved(self)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:  # right after the first save
        patched.setattr(artifacts.RunFolder, "save", save_and_stop)
        with pytest.raises(KeyboardInterrupt):
            psi.run(after)
    assert not is_finished(entry)
    assert not is_finished(replace(entry, config=before))
    with pytest.raises(RunFolderError, match="stage score unfinished"):
        load_stored(tmp_path)
    with pytest.raises(RunFolderError, match="not there yet"):
        _ = psi.open_run(tmp_path).channels
    psi.run(after)
    assert is_finished(entry)
    assert load_stored(tmp_path).config.score == after.score
