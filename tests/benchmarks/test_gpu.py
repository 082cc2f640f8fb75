"""The check for GPUs, on a CPU and small: every part runs, and a wrong kernel stops it."""

import csv

import pytest
import torch

from benchmarks import gpu

SMALL = ["--device", "cpu", "--channels", "4", "--images", "30", "--rounds", "1", "--workers", "0"]
SMALL += ["--replicates", "3"]


def test_operations_are_compared_and_written(tmp_path):
    gpu.main([*SMALL, "--parts", "ops", "--out", str(tmp_path)])
    with (tmp_path / "gpu.csv").open() as file:
        rows = list(csv.DictReader(file))
    timed = {(row["what"], row["backend"]) for row in rows if row["seconds_p50"]}
    for name in ("silhouette", "separability", "Q, M = 3", "S, M = 3"):
        assert {(name, "numba"), (name, "torch")} <= timed
    assert all(float(row["floor"]) > 0 for row in rows if row["floor"])


@pytest.mark.slow
def test_a_run_on_generated_images():
    results = gpu.main([*SMALL, "--parts", "run"])
    (row,) = [row for row in results.rows if row["what"] == "run fp32"]
    assert row["mine"] > 0
    assert row["score"] > 0


def test_a_kernel_that_differs_stops_the_check(monkeypatch):
    honest = gpu.silhouette

    def wrong(grams, labels, backend):
        return honest(grams, labels, backend=backend) + 1e-4 * (backend == "numba")

    monkeypatch.setattr(gpu, "silhouette", wrong)
    with pytest.raises(SystemExit, match="silhouette: the kernel differs"):
        gpu.main([*SMALL, "--parts", "ops"])


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU to measure")
def test_without_a_gpu_nothing_is_measured():
    with pytest.raises(SystemExit, match="no CUDA device"):
        gpu.main([])
