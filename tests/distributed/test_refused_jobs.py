"""Jobs that must not run: ranks that want different things, two jobs in one folder."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import psi_engine as psi
from psi_engine import artifacts, pipeline
from psi_engine.causal import swap
from psi_engine.errors import RunFolderError
from psi_engine.validation import GroundTruthConfig, ground_truth, run_ground_truth, validate_run
from tests import toy
from tests.distributed.test_world import hold
from tests.distributed.threads import on_ranks

OPTIONS: dict[str, Any] = {
    "model": "tests.toy:model",
    "layers": ["head"],
    "encoder": "tests.toy:encoder",
    "patch": 16,
    "top_k": 12,
    "pool": 60,
    "replicates": 10,
    "device": "cpu",
}


def test_ranks_with_other_settings_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "check", lambda *_: pytest.fail("inputs were looked at"))

    def work(world: Any) -> None:
        seed = 1 if world.main else 2
        options = {**OPTIONS, "data": f"data-{world.rank}", "seed": seed}
        pipeline._inputs(psi.RunConfig.from_options(**options), None, world)

    with pytest.raises(Exception, match=r"different settings: mine.seed; got 2 on rank 1; exp"):
        on_ranks(2, work)


@pytest.fixture
def busy() -> Iterator[Callable[[Path], None]]:
    """Have another process at work in a folder."""
    others = []

    def occupy(folder: Path) -> None:
        others.append(hold(folder / ".lock"))
        assert others[-1].stdout.readline() == "held\n"

    yield occupy
    for other in others:
        other.kill()
        other.communicate()


def test_a_folder_in_use_is_refused(tmp_path: Path) -> None:
    data = str(toy.write_images(tmp_path / "images", 48))
    config = psi.RunConfig.from_options(**OPTIONS, data=data, out=str(tmp_path / "run"))
    with hold(tmp_path / "run" / ".lock") as other:
        try:
            assert other.stdout.readline() == "held\n"
            with pytest.raises(RunFolderError, match="another job is writing there"):
                psi.run(config)
        finally:
            other.kill()
    psi.run(config)
    assert ".lock" not in [path.name for path in (tmp_path / "run").iterdir()]


@pytest.mark.parametrize("command", [swap, validate_run])
def test_a_run_in_use_is_neither_swapped_nor_validated(
    tmp_path: Path, busy: Callable[[Path], None], command: Callable[[Path], Any]
) -> None:
    artifacts.RunFolder(tmp_path / "run", {"model": "m"}).save()
    before = (tmp_path / "run/manifest.json").read_bytes()
    busy(tmp_path / "run")
    with pytest.raises(RunFolderError, match="another job is writing there"):
        command(tmp_path / "run")
    assert (tmp_path / "run/manifest.json").read_bytes() == before
    with pytest.raises(RunFolderError, match="not a run folder"):
        command(tmp_path / "nothing")
    assert not (tmp_path / "nothing").exists()


def test_ground_truth_in_use_is_refused(
    tmp_path: Path, busy: Callable[[Path], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ground_truth, "_check", lambda *_: None)
    busy(tmp_path / "truth")
    with pytest.raises(RunFolderError, match="another job is writing there"):
        run_ground_truth(GroundTruthConfig.demo(out=str(tmp_path / "truth")))
    assert [path.name for path in (tmp_path / "truth").iterdir()] == [".lock"]
