"""Layers compared: every statistic against SciPy's on the same values."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from psi_engine.validation.part import Context
from psi_engine.validation.parts.depth import PART, _pairs


def values(seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        "a": rng.normal(size=30),
        "b": rng.normal(1.5, 1, 25),
        "c": np.r_[rng.normal(-1, 2, 20), 0, 0],
    }


def test_tests_and_areas_are_scipys() -> None:
    own = values()
    rows = {(row["earlier"], row["later"]): row for row in _pairs("log_psi", own, 200, 0)}
    assert list(rows) == [("a", "b"), ("a", "c"), ("b", "c")]
    assert [row["next"] for row in rows.values()] == [True, False, True]
    for (low, high), row in rows.items():
        ks = stats.ks_2samp(own[high], own[low])
        rank = stats.mannwhitneyu(own[high], own[low])
        assert (row["ks"], row["ks_p"]) == (ks.statistic, ks.pvalue)
        assert (row["mann_whitney_u"], row["mann_whitney_p"]) == (rank.statistic, rank.pvalue)
        want = rank.statistic / (len(own[low]) * len(own[high]))
        assert row["auroc"] == pytest.approx(want, abs=1e-12)
        assert row["auroc_low"] < row["auroc"] < row["auroc_high"]
    assert rows["a", "b"]["above_upper_quartile"]
    assert not rows["a", "c"]["above_upper_quartile"]
    # Holm by hand: the smallest p times 3, the next times 2, never falling
    p = sorted(row["ks_p"] for row in rows.values())
    want = [3 * p[0], max(3 * p[0], 2 * p[1]), max(3 * p[0], 2 * p[1], p[2])]
    got = sorted(row["ks_p_adj"] for row in rows.values())
    assert got == pytest.approx([min(x, 1.0) for x in want])


def test_the_part_summarises_the_runs_own_table(context: Context, tmp_path: Path) -> None:
    result = PART.compute(context)
    table = context.stored.run.channels.to_pylist()
    for row in result.tables["layers"].to_pylist():
        own = [
            channel[row["measure"]]
            for channel in table
            if channel["layer"] == row["layer"] and channel[row["measure"]] is not None
        ]
        assert row["channels"] == len(own)
        quartiles = [row["lower_quartile"], row["median"], row["upper_quartile"]]
        assert quartiles == pytest.approx(np.percentile(own, [25, 50, 75]))
    assert result.notes == ("conv2: 1 channels have no score and are left out",)
    assert len(result.tables["pairs"]) == 5
    files = PART.draw(result.tables, tmp_path / "depth")
    assert "log PSI" in files[1].read_text()


def test_one_layer_has_nothing_to_compare_with(context: Context, tmp_path: Path) -> None:
    one = replace(context.stored, layers={"conv2": context.stored.layers["conv2"]})
    result = PART.compute(replace(context, stored=one))
    assert len(result.tables["pairs"]) == 0
    assert "one layer: nothing to compare it with" in result.notes
    PART.draw(result.tables, tmp_path / "depth")
