"""Real channels against random sets: areas, calls and values against SciPy and scikit-learn."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from scipy import stats
from sklearn import metrics

from psi_engine.inputs import Texts
from psi_engine.nulls.registry import NULLS
from psi_engine.validation.bank import with_bank
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
    want = {(x.upper(), null) for x in NULLS for null in NULLS[x]}
    raw = {(x, "raw") for x in "SQD"}
    assert names == want | raw | {("PSI", "calibrated"), ("PSI", "paper")}
    assert len(areas) == len(names)
    assert not any("unrelated" in note for note in found[1].notes)
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
    one = _Measured("S", "pool", 100, p, p, "S pool")
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


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """S against the pool is the only null beside the presets."""
    monkeypatch.setattr(null_baseline, "NULLS", {"s": {"pool": None}, "q": {}, "d": {}})
    monkeypatch.setattr(null_baseline, "d_nulls", lambda texts: [])


@pytest.mark.usefixtures("few")
def test_the_seed_draws_other_sets(found: tuple[Context, Result]) -> None:
    context, result = found
    again = PART.compute(replace(context, options=replace(OPTIONS, seed=1)))
    named = {"measure": "S", "null": "raw", "kind": "null"}
    values, others = (
        [row["value"] for row in rows_of(x, "units", **named)] for x in (result, again)
    )
    assert len(values) == len(others) == 15
    assert set(values).isdisjoint(others)
    same = PART.compute(context)
    assert rows_of(same, "areas", measure="S") == [
        row for row in rows_of(result, "areas", measure="S") if row["null"] in ("raw", "pool")
    ]
    assert rows_of(same, "units", **named) == rows_of(result, "units", **named)


def test_the_paper_preset_has_its_own_null_of_d(found: tuple[Context, Result]) -> None:
    (row,) = rows_of(found[1], "areas", measure="PSI", null="paper")
    assert row["components"] == "S rotation, Q permutation, D unrelated-text"
    (row,) = rows_of(found[1], "areas", measure="D", null="unrelated-text")
    assert row["components"] == "D unrelated-text"
    assert row["real_missing"] == 0


@pytest.mark.usefixtures("few")
def test_without_a_bank_the_null_in_its_place_is_named(
    found: tuple[Context, Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    context = found[0]
    monkeypatch.setitem(context.stored.run.manifest["encoder"], "text", "fixed")
    result = PART.compute(context)
    (row,) = rows_of(result, "areas", measure="PSI", null="paper")
    assert row["components"] == "S rotation, Q permutation, D text-shuffle"
    (note,) = (note for note in result.notes if "unrelated-text" in note)
    assert "text-shuffle stands in the paper's preset" in note
    assert any("(paper: S rotation, Q permutation, D text-shuffle)" in x for x in result.headline)


def test_a_bank_that_cannot_be_had_says_why(
    found: tuple[Context, Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    stored = found[0].stored
    monkeypatch.setitem(stored.run.manifest["fingerprints"], "encoder", "another")
    texts, lacking = with_bank(stored)
    assert texts is stored.texts
    assert "cannot be embedded" in str(lacking)
    assert "was made with other encoder" in str(lacking)


@pytest.mark.usefixtures("few")
def test_what_the_run_lacks_is_said_once(found: tuple[Context, Result]) -> None:
    context = found[0]
    layer = replace(context.stored.layers["conv2"], image_labels=None)
    texts = Texts(None, None, None, None)
    bare = replace(context.stored, layers={"conv2": layer}, labels=None, texts=texts)
    result = PART.compute(replace(context, stored=bare))
    for lacking in ("no labels: Q is unavailable", "no text embeddings: D is unavailable"):
        assert sum(lacking in note for note in result.notes) == 1
    assert not any("no labels" in note or "no text" in note for note in found[1].notes)
    (row,) = rows_of(result, "areas", measure="PSI", null="paper")
    assert row["components"] == "S rotation"


def test_a_kind_without_any_value_has_no_area(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    some = {"real": random.normal(size=6), "null": random.normal(size=8)}
    none = {kind: np.full(len(x), np.nan) for kind, x in some.items()}
    half = {"real": np.where(np.arange(6) < 3, np.nan, some["real"]), "null": some["null"]}
    measured = [
        _Measured("S", "pool", 20, some, none, "S pool"),
        _Measured("D", "pool", 20, none, none, "D pool"),
        _Measured("D", "partition", 20, {"real": none["real"], "null": some["null"]}, none, ""),
        _Measured("Q", "exact", 20, half, none, "Q exact"),
        _Measured("PSI", "paper", 20, none, none, "S pool, D pool"),
    ]
    rows = null_baseline._areas("conv", measured, 20, 0)
    assert [row["auroc"] is None for row in rows] == [False, True, True, False, True]
    assert [row["average_precision_high"] is None for row in rows] == [
        False, True, True, False, True,
    ]  # fmt: skip
    assert rows[3]["auroc"] == pytest.approx(
        stats.mannwhitneyu(np.nan_to_num(half["real"], nan=-9), half["null"]).statistic / 48
    )
    assert list(null_baseline._refused("conv", rows)) == [
        "conv: D pool, PSI paper: 100.0% of the channels and 100.0% of the random sets have no "
        "value: no area",
        "conv: D partition: 100.0% of the channels and 0.0% of the random sets have no value: "
        "no area",
        "conv: Q exact: 50.0% of the channels and 0.0% of the random sets have no value: these "
        "count against the measure",
    ]
    assert null_baseline._headline(rows) == ()
    names = {"real": np.arange(6), "null": np.arange(8)}
    tables = {
        "units": pa.concat_tables([null_baseline._unit_rows("conv", x, names) for x in measured]),
        "areas": pa.Table.from_pylist(rows, null_baseline._AREAS),
    }
    assert len(PART.draw(tables, tmp_path / "null-baseline")) == 3


def test_the_figure_is_drawn_from_the_tables(found: tuple[Context, Result], tmp_path: Path) -> None:
    files = PART.draw(found[1].tables, tmp_path / "null-baseline")
    assert [file.name for file in files] == [
        f"null-baseline.{form}" for form in ("png", "svg", "pdf")
    ]
    text = files[1].read_text()
    for expected in ("rotation-tangent", "conv2, paper preset", "AUROC against random sets"):
        assert expected in text
