"""Which contrasts there are, and which of them a headline counts."""

from __future__ import annotations

import numpy as np
import pytest

from psi_engine.errors import InputError
from psi_engine.validation.contrasts import WORST, contrasts, judge
from psi_engine.validation.measures import Measure

KINDS = ("mono", "poly2-unrelated", "poly3-related", "noise-value", "noise-projection")


def measure(values: np.ndarray) -> Measure:
    return Measure("m", "component", "", "", "", "", "none", values)


def test_every_polysemantic_kind_is_held_against_every_other() -> None:
    names = [contrast.name for contrast in contrasts(KINDS)]
    lows = ("mono", "noise-projection", "noise-value")
    highs = ("poly2-unrelated", "poly3-related")
    assert names == [f"{high} / {low}" for high in highs for low in lows]
    with pytest.raises(InputError, match="no polysemantic units"):
        contrasts(("mono", "noise"))


def test_projections_count_in_a_headline_of_their_own() -> None:
    kinds, half = np.repeat(KINDS, 4), np.tile(["tuning", "held-out"], 10)
    height = {"mono": 0, "poly2-unrelated": 2, "poly3-related": 1, "noise-value": 0}
    values = np.array([float(height.get(kind, 3)) for kind in kinds])
    table = judge("s", kinds, half, [measure(values)], 0, 5).to_pylist()
    found = {(row["half"], row["contrast"]): row["auroc"] for row in table}
    for name in ("tuning", "held-out", "both"):
        assert found[name, WORST["unrelated"]] == found[name, WORST["related"]] == 1.0
        assert found[name, WORST["projection"]] == 0.0
        assert found[name, "poly3-related / noise-projection"] == 0.0
    sizes = {(row["half"], row["n_high"], row["n_low"]) for row in table}
    assert sizes == {("tuning", 2, 2), ("held-out", 2, 2), ("both", 4, 4)}


def test_the_interval_of_a_headline_is_of_the_lowest_in_each_resample() -> None:
    random = np.random.default_rng(0)
    kinds = np.repeat(["mono", "noise", "poly2-unrelated"], 40)
    values = random.normal(size=120) + (kinds == "poly2-unrelated")
    half = np.tile(["tuning", "held-out"], 60)
    table = judge("s", kinds, half, [measure(values)], 0, 300).to_pylist()
    rows = {row["contrast"]: row for row in table if row["half"] == "both"}
    worst = rows[WORST["unrelated"]]
    plain = [rows["poly2-unrelated / mono"], rows["poly2-unrelated / noise"]]
    assert worst["auroc"] == min(row["auroc"] for row in plain)
    # picking the lower of two pulls the interval below either's own
    assert worst["auroc_high"] < min(row["auroc_high"] for row in plain)
    assert worst["auroc_low"] <= min(row["auroc_low"] for row in plain)
    assert judge("s", kinds, half, [measure(values)], 0, 300).to_pylist() == table
    assert judge("s", kinds, half, [measure(values)], 1, 300).to_pylist() != table


def test_what_was_fitted_on_the_tuning_half_has_no_area_over_both() -> None:
    kinds, half = np.repeat(KINDS, 4), np.tile(["tuning", "held-out"], 10)
    plain = measure(np.arange(20.0))
    fitted = plain._replace(name="f", family="logistic")
    table = judge("s", kinds, half, [plain, fitted], 0, 5).to_pylist()
    halves = {name: {row["half"] for row in table if row["measure"] == name} for name in "mf"}
    assert halves == {"m": {"tuning", "held-out", "both"}, "f": {"tuning", "held-out"}}
