"""Real ranks: processes that torchrun starts, exchanging over gloo."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests import toy

FILES = (
    "mining.safetensors",
    "embeddings/embeddings.npy",
    "embeddings/boxes.parquet",
    "score_inputs.safetensors",
    "channels.parquet",
    "sites.parquet",
    "clusters.parquet",
    "nulls.parquet",
)


def launch(ranks: int, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += [f"--nproc-per-node={ranks}", "-m", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        command, capture_output=True, text=True, env=environment, check=False, timeout=500
    )


def test_ranks_exchange_over_gloo() -> None:
    done = launch(3, "tests.distributed.ranks", "exchanges")
    assert done.returncode == 0, done.stderr
    assert sorted(done.stdout.split("\n")) == ["", "0 fine", "1 fine", "2 fine"]


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
def test_ranks_equal_a_full_sort(ranks: int) -> None:
    done = launch(ranks, "tests.distributed.ranks", "mines")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("fine") == ranks


@pytest.mark.slow
@pytest.mark.parametrize("case", ["main_fails", "one_dies"])
def test_ranks_learn_of_each_others_end(case: str) -> None:
    done = launch(2, "tests.distributed.ranks", case)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy.write_images(tmp_path_factory.mktemp("images"), 160)


def job(path: Path, images: Path, out: Path, deaths: dict[str, int] | None = None) -> str:
    options = {**toy.RUN_OPTIONS, "data": str(images), "out": str(out)}
    path.write_text(json.dumps({"options": options, "deaths": deaths or {}}))
    return str(path)


@pytest.fixture(scope="module")
def alone(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("alone")
    file = job(folder / "job.json", images, folder / "run")
    subprocess.run([sys.executable, "-m", "tests.distributed.job", file], check=True, timeout=500)
    return folder / "run"


def assert_same_files(a: Path, b: Path) -> None:
    for name in FILES:
        assert (a / name).read_bytes() == (b / name).read_bytes(), name
    names = [{str(x.relative_to(root)) for x in root.rglob("*")} for root in (a, b)]
    assert names[0] == names[1]
    manifests = [json.loads((root / "manifest.json").read_text()) for root in (a, b)]
    notes = [x["stages"]["score"]["notes"] for x in manifests]
    assert notes[0] == notes[1]


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [2, 3, 4])
def test_ranks_write_what_one_process_writes(
    alone: Path, images: Path, tmp_path: Path, ranks: int
) -> None:
    done = launch(ranks, "tests.distributed.job", job(tmp_path / "job", images, tmp_path / "run"))
    assert done.returncode == 0, done.stderr
    assert_same_files(tmp_path / "run", alone)


@pytest.mark.slow
def test_a_rank_that_dies_ends_the_job_and_others_go_on_from_it(
    alone: Path, images: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    done = launch(4, "tests.distributed.job", job(tmp_path / "job", images, run, {"2": 32}))
    assert done.returncode != 0
    assert [*(run / "mining.partial").glob("*.safetensors")]
    done = launch(3, "tests.distributed.job", job(tmp_path / "job", images, run))
    assert done.returncode == 0, done.stderr
    assert_same_files(run, alone)


@pytest.mark.slow
def test_one_message_for_what_every_rank_meets(images: Path, tmp_path: Path) -> None:
    options = ["--layers", "conv2", "--data", str(images), "--out", str(tmp_path / "run")]
    done = launch(2, "psi_engine", "run", "--model", "tests.toy:missing", *options)
    assert done.returncode != 0
    said = [line for line in done.stderr.split("\n") if "error: " in line.lower()]
    assert len([line for line in said if "tests.toy" in line]) == 1, done.stderr
