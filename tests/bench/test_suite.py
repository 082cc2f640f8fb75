"""A suite of toy runs: one fails, the rest are compared, and nothing is done twice."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from scipy import stats
from typer.testing import CliRunner

from psi_engine.artifacts import open_run
from psi_engine.bench import Suite, read_plan, run_suite, suite
from psi_engine.bench.cost import PeakMemory
from psi_engine.bench.plan import Plan
from psi_engine.cli import app
from psi_engine.errors import RunFolderError
from tests import toy

TEXT = """
data = "{images}"
encoder = "tests.toy:encoder"
patch = 16
top_k = 8
pool = 40
replicates = 20
restarts = 2
subsamples = 0
device = "cpu"

[[models]]
name = "toy"
model = "tests.toy:model"
layers = ["conv2", "head"]
seeds = [0, 1]

[[models]]
name = "broken"
model = "tests.toy:model"
layers = ["conv7"]

[[models]]
name = "poisoned"
model = "tests.toy:poisoned"
layers = ["0"]
"""


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    folder = tmp_path_factory.mktemp("suite")
    images = toy.write_images(folder / "images", 24)
    (folder / "models.toml").write_text(TEXT.format(images=images), encoding="utf-8")
    return read_plan(folder / "models.toml", folder / "out")


@pytest.fixture(scope="module")
def ran(plan: Plan) -> Suite:
    return run_suite(plan)


def test_a_run_that_fails_is_listed_and_the_others_go_on(ran: Suite) -> None:
    states = {outcome.run: outcome.status for outcome in ran.outcomes}
    assert states == {
        "toy/calibrated-seed0": "done",
        "toy/calibrated-seed1": "done",
        "broken/calibrated-seed0": "failed",
        "poisoned/calibrated-seed0": "done",
    }
    (failed,) = ran.failed
    assert "unknown layer 'conv7'; expected one of conv" in failed.reason
    held = json.loads((ran.folder / "suite.json").read_text())["runs"]
    assert held["broken/calibrated-seed0"]["reason"] == failed.reason


def test_the_comparison_says_what_the_runs_say(ran: Suite) -> None:
    table = ran.tables["comparison"]
    rows = {(r["name"], r["seed"], r["layer"]): r for r in table.to_pylist()}
    assert list(rows) == [
        ("toy", 0, "conv2"), ("toy", 0, "head"), ("toy", 1, "conv2"), ("toy", 1, "head"),
        ("poisoned", 0, "0"),
    ]  # fmt: skip
    run = open_run(ran.folder / "runs/toy/calibrated-seed1")
    channels = [c for c in run.channels.to_pylist() if c["layer"] == "conv2"]
    row = rows["toy", 1, "conv2"]
    assert (row["channels"], row["dead"], row["short"]) == (8, 1, 0)
    assert row["scorable"] == sum(c["verdict"] != "not scorable" for c in channels)
    verdicts = ("polysemantic", "monosemantic", "random_like", "not_scorable")
    assert sum(row[verdict] for verdict in verdicts) == 8
    for measure in ("log_psi", "s_z", "q", "clarity"):
        values = [c[measure] for c in channels if c[measure] is not None]
        expected = np.percentile(values, [25, 50, 75])
        found = [row[f"{measure}_{point}"] for point in ("q25", "median", "q75")]
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)
    k = [c["n_clusters"] for c in channels if c["n_clusters"]]
    assert row["clusters_mean"] == pytest.approx(np.mean(k), rel=0, abs=1e-12)
    assert (row["depth"], row["field"], row["images"]) == (2 / 3, 16, 24)
    assert row["components"] == "s q d"
    stages = run.manifest["stages"]
    assert row["seconds_mine"] == stages["mine"]["seconds"]
    assert row["images_per_second"] == 24 / stages["mine"]["seconds"]
    assert row["crops_per_second"] == stages["embed"]["crops"] / stages["embed"]["seconds"]
    assert row["peak_rss_bytes"] is None or row["peak_rss_bytes"] > 1 << 20
    # Of the poisoned channel nothing is finite where no image is red enough.
    poisoned = open_run(ran.folder / "runs/poisoned/calibrated-seed0").channels.to_pylist()
    row = rows["poisoned", 0, "0"]
    assert row["short"] == sum(c["status"] == "short" for c in poisoned)
    assert (row["dead"], row["not_scorable"], row["scorable"]) == (1, 1, 2)


def test_seeds_are_put_together(ran: Suite) -> None:
    rows = {(r["name"], r["layer"]): r for r in ran.tables["comparison_seeds"].to_pylist()}
    assert {key: row["seeds"] for key, row in rows.items()} == {
        ("toy", "conv2"): 2, ("toy", "head"): 2, ("poisoned", "0"): 1,
    }  # fmt: skip
    medians, by_seed = [], []
    for seed in (0, 1):
        table = open_run(ran.folder / f"runs/toy/calibrated-seed{seed}").channels
        table = table.filter(pc.equal(table["layer"], "conv2"))
        medians.append(np.median(table["log_psi"].drop_null().to_numpy()))
        by_seed.append(table["log_psi"].to_numpy(zero_copy_only=False))
    row = rows["toy", "conv2"]
    assert row["log_psi_median_mean"] == pytest.approx(np.mean(medians), rel=0, abs=1e-12)
    assert row["log_psi_median_sd"] == pytest.approx(np.std(medians, ddof=1), rel=0, abs=1e-12)
    assert (row["log_psi_median_min"], row["log_psi_median_max"]) == (min(medians), max(medians))
    both = ~np.isnan(by_seed[0]) & ~np.isnan(by_seed[1])
    expected = stats.spearmanr(by_seed[0][both], by_seed[1][both]).statistic
    assert row["rank_agreement"] == pytest.approx(expected, rel=0, abs=1e-12)
    assert rows["poisoned", "0"]["log_psi_median_sd"] is None
    assert rows["poisoned", "0"]["rank_agreement"] is None


def test_what_is_written(ran: Suite) -> None:
    for name, table in ran.tables.items():
        assert pq.read_table(ran.folder / f"{name}.parquet").equals(table)
        text = pyarrow.csv.read_csv(ran.folder / f"{name}.csv")
        assert text.column_names == table.column_names
        assert len(text) == len(table)
    assert [path.name for path in ran.figures] == [
        f"comparison.{form}" for form in ("png", "svg", "pdf")
    ]
    assert all(path.is_file() for path in ran.figures)


def test_a_finished_run_is_kept_and_a_failed_one_tried_again(
    plan: Plan, ran: Suite, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def run(config: object, *, progress: object) -> None:
        asked.append(str(config.out))  # type: ignore[attr-defined]
        raise RuntimeError("out of memory")

    monkeypatch.setattr(suite, "run", run)
    again = run_suite(plan)
    assert [Path(out).parts[-2] for out in asked] == ["broken"]
    assert [outcome.status for outcome in again.outcomes] == ["kept", "kept", "failed", "kept"]
    assert again.failed[0].reason == "RuntimeError: out of memory"
    assert again.tables["comparison"].equals(ran.tables["comparison"])
    # Another setting is another run; workers and batch size are not settings of the result.
    changed = [
        replace(entry, config=replace(entry.config, workers=1, max_images=20 + 4 * (n > 0)))
        for n, entry in enumerate(plan.entries)
    ]
    asked.clear()
    run_suite(replace(plan, entries=tuple(changed[:1])))
    assert len(asked) == 1
    same = replace(
        plan.entries[0].config, workers=1, mine=replace(plan.entries[0].config.mine, batch_size=7)
    )
    assert suite.is_finished(replace(plan.entries[0], config=same))


def test_an_interrupted_suite_compares_what_is_finished(
    plan: Plan, ran: Suite, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(suite, "run", interrupt)
    (ran.folder / "comparison.parquet").unlink()
    with pytest.raises(KeyboardInterrupt):
        run_suite(plan)
    table = pq.read_table(ran.folder / "comparison.parquet")
    assert table["name"].to_pylist() == ["toy"] * 4 + ["poisoned"]


def test_another_folder_is_refused(plan: Plan, tmp_path: Path) -> None:
    (tmp_path / "letter.txt").write_text("dear")
    with pytest.raises(RunFolderError, match="is not a suite's folder"):
        run_suite(Plan(tmp_path, plan.entries))


def test_the_command(plan: Plan, ran: Suite) -> None:
    file, out = plan.folder.parent / "models.toml", str(plan.folder)
    found = CliRunner().invoke(app, ["bench", str(file), "--out", out, "--json"])
    assert found.exit_code == 1  # one run fails
    summary = json.loads(found.stdout)
    assert summary["failed"] == 1
    assert [r["status"] for r in summary["runs"]] == ["kept", "kept", "failed", "kept"]
    assert [row["layer"] for row in summary["layers"]] == ["conv2", "head", "0"]
    shown = CliRunner(env={"COLUMNS": "100"}).invoke(app, ["bench", str(file), "--out", out])
    assert shown.exit_code == 1
    assert shown.stdout.strip().splitlines()[-1] == out
    assert "failed: broken/calibrated-seed0: unknown layer 'conv7'" in shown.stderr
    assert "0 done, 3 kept, 1 failed" in shown.stderr
    wrong = CliRunner().invoke(app, ["bench", str(file.with_name("no.toml"))])
    assert wrong.exit_code == 2


def test_peak_memory_is_that_of_its_own_time() -> None:
    before = PeakMemory()
    if before.resident_bytes() is None:
        pytest.skip("this system does not tell a process's peak memory")
    block = np.ones(96 << 20, np.uint8)
    high = before.resident_bytes()
    del block
    after = PeakMemory().resident_bytes()
    assert high is not None
    assert after is not None
    assert high - after > 80 << 20
