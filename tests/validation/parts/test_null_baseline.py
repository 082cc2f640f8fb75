"""Real channels against random sets: areas, calls and values against SciPy and scikit-learn."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn import metrics

from psi_engine.nulls.registry import NULLS
from psi_engine.validation.null_channels import null_channels
from psi_engine.validation.part import Context, Options, Result
from psi_engine.validation.parts import null_baseline
from psi_engine.validation.parts.null_baseline import PART, _called, _Measured

OPTIONS = Options(bootstrap=40, channel_replicates=20, null_channels=15, replicates=20)


@pytest.fixture(scope="module")
def found(toy_stored: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Context, Result]:
    one = replace(toy_stored, layers={"conv2": toy_stored.layers["conv2"]})
    context = Context(one, OPTIONS, tmp_path_factory.mktemp("part"))
    return context, PART.compute(context)


def rows_of(result: Result, table: str, **named: str) -> list[dict[str, Any]]:
    rows = result.tables[table].to_pylist()
    return [row for row in rows if all(row[name] == value for name, value in named.items())]


def test_every_null_and_preset_is_there(found: tuple[Context, Result]) -> None:
    areas = rows_of(found[1], "areas")
    names = {(row["measure"], row["null"]) for row in areas}
    want = {(x.upper(), null) for x in NULLS for null in NULLS[x]} - {("D", "unrelated-text")}
    raw = {(x, "raw") for x in "SQD"}
    assert names == want | raw | {("PSI", "calibrated"), ("PSI", "paper")}
    assert len(areas) == len(names)
    assert any("kept no bank of unrelated texts" in note for note in found[1].notes)
    assert any("1 channels cannot be scored" in note for note in found[1].notes)  # the dead one
    assert {(row["real_units"], row["null_units"]) for row in areas} == {(7, 15)}


def test_areas_are_scikit_learns_and_scipys(found: tuple[Context, Result]) -> None:
    for row in rows_of(found[1], "areas"):
        named = {"measure": row["measure"], "null": row["null"]}
        high, low = (
            [unit["value"] for unit in rows_of(found[1], "units", kind=kind, **named)]
            for kind in ("real", "null")
        )
        high = [-np.inf if x is None else x for x in high]
        low = [np.inf if x is None else x for x in low]
        assert row["real_missing"] == high.count(-np.inf)
        want = stats.mannwhitneyu(high, low).statistic / (len(high) * len(low))
        assert row["auroc"] == pytest.approx(want, abs=1e-12)
        truth = np.repeat([1, 0], [len(high), len(low)])
        values = np.nan_to_num(np.array(high + low), posinf=1e300, neginf=-1e300)
        want = metrics.average_precision_score(truth, values)
        assert row["average_precision"] == pytest.approx(want, abs=1e-12)
        assert row["auroc_low"] <= row["auroc_high"]


def test_values_are_those_of_the_scorer_against_the_other_half(
    found: tuple[Context, Result],
) -> None:
    context, result = found
    sets = null_channels(context.stored.layers["conv2"], 15, 0)
    config = replace(context.stored.config.score, replicates=20)
    alone = {
        "real": context.stored.score("conv2", config, pool=sets.pool),
        "null": context.stored.score(
            "conv2", config, embeddings=sets.embeddings, labels=sets.labels,
            channel_ids=sets.channel_ids, mask=None, pool=sets.pool,
        ),
    }  # fmt: skip
    for kind, scores in alone.items():
        want = scores.log_psi[~torch.isnan(scores.log_psi)].tolist()
        units = rows_of(result, "units", kind=kind, measure="PSI", null="calibrated")
        assert [unit["value"] for unit in units] == want
        units = rows_of(result, "units", kind=kind, measure="S", null="pool")
        assert [unit["value"] for unit in units] == scores.s_z[~torch.isnan(scores.s_z)].tolist()


def test_calls_are_counted() -> None:
    p = {"real": np.array([0.01, 0.05, 0.2, np.nan]), "null": np.array([0.04] + [0.5] * 9)}
    one = _Measured("S", "pool", 100, p, p)
    got = _called(one)
    assert (got["called_real"], got["called_null"]) == (2 / 3, 0.1)
    # Wilson's interval by its formula
    z, n, share = stats.norm.ppf(0.975), 10, 0.1
    centre = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * (share * (1 - share) / n + z**2 / (4 * n**2)) ** 0.5
    ends = (got["called_null_low"], got["called_null_high"])
    assert ends == pytest.approx((centre - half, centre + half))
    assert _called(replace(one, draws=18))["called_null"] is None  # no p is below 1/19
    assert _called(replace(one, draws=19))["called_null"] == 0.1


def test_the_seed_draws_other_sets(found: tuple[Context, Result], monkeypatch: Any) -> None:
    context, result = found
    monkeypatch.setattr(null_baseline, "NULLS", {"s": {"pool": None}, "q": {}, "d": {}})
    monkeypatch.setattr(null_baseline, "d_nulls", lambda texts: [])
    again = PART.compute(replace(context, options=replace(OPTIONS, seed=1)))
    assert rows_of(again, "areas", null="pool") != rows_of(
        result, "areas", null="pool", measure="S"
    )
    same = PART.compute(context)
    assert rows_of(same, "areas", measure="S") == [
        row for row in rows_of(result, "areas", measure="S") if row["null"] in ("raw", "pool")
    ]


def test_the_figure_is_drawn_from_the_tables(found: tuple[Context, Result], tmp_path: Path) -> None:
    files = PART.draw(found[1].tables, tmp_path / "null-baseline")
    assert [file.name for file in files] == ["null-baseline.png", "null-baseline.svg"]
    text = files[1].read_text()
    for expected in ("rotation-tangent", "conv2, paper preset", "AUROC against random sets"):
        assert expected in text
