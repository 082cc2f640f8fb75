"""Rankings under other settings: what is compared, what is said of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from scipy import stats

from psi_engine.stored import StoredRun
from psi_engine.validation.part import Context, Options, Result
from psi_engine.validation.parts import stability
from psi_engine.validation.parts.stability import PART, compute, why_missed

OPTIONS = Options(bootstrap=40, variants=True)


@pytest.fixture(scope="module")
def result(toy_stored: StoredRun, tmp_path_factory: pytest.TempPathFactory) -> Result:
    return compute(Context(toy_stored, OPTIONS, tmp_path_factory.mktemp("stability")))


def rows(table: pa.Table, **where: Any) -> list[dict[str, Any]]:
    return [r for r in table.to_pylist() if all(r[name] == x for name, x in where.items())]


def test_every_axis_is_there_for_every_layer_and_all_together(result: Result) -> None:
    found = result.tables["correlations"]
    axes = {"K", "seed", "M", "k", "solver", "images", "patch", "sites"}
    for layer in ("conv1", "conv2", "all layers"):
        assert {r["axis"] for r in rows(found, layer=layer)} == axes
    names = {r["condition"] for r in rows(result.tables["conditions"], axis="K")}
    assert names == {"5", "7", "10", "12", "24"}
    assert {r["layer"] for r in result.tables["reasons"].to_pylist()} == {"conv1", "conv2"}


def test_coefficients_are_scipys_of_the_scores_in_the_table(result: Result) -> None:
    scores = result.tables["scores"]
    checked = 0
    for row in rows(result.tables["correlations"], layer="conv2"):
        if row["measure"] == "log_psi_without_q" or row["spearman"] is None:
            continue
        x, y = (
            np.array(
                [
                    r[row["measure"]]
                    for r in rows(scores, layer="conv2", axis=row["axis"], condition=c)
                ],
                float,
            )
            for c in (row["one"], row["other"])
        )
        both = ~(np.isnan(x) | np.isnan(y))
        assert row["n"] == both.sum()
        assert row["spearman"] == pytest.approx(stats.spearmanr(x[both], y[both]).statistic)
        checked += 1
    assert checked > 100


def test_the_runs_own_condition_has_the_runs_own_scores(
    result: Result, toy_stored: StoredRun
) -> None:
    found, own = result.tables["scores"], toy_stored.run.channels
    names = (("K", "12"), ("seed", "0"), ("M", "60"), ("k", "2–5"), ("patch", "× 1"))
    for axis, name in names:
        kept = pc.and_(pc.equal(found["axis"], axis), pc.equal(found["condition"], name))
        assert found.filter(kept)["log_psi"].to_pylist() == own["log_psi"].to_pylist()
        assert found.filter(kept)["verdict"].to_pylist() == own["verdict"].to_pylist()


def test_targets_are_those_of_seeds_and_the_last_fifth_of_patches(result: Result) -> None:
    reasons = result.tables["reasons"]
    with_target = [
        (r["axis"], r["one"], r["other"], r["target"])
        for r in rows(reasons, layer="conv2")
        if r["target"]
    ]
    assert with_target == [
        ("K", "10", "12", 0.8), ("seed", "0", "1", 0.9), ("seed", "0", "2", 0.9),
        ("seed", "1", "2", 0.9),
    ]  # fmt: skip
    for row in reasons.to_pylist():
        assert (row["reached"] is None) == (row["target"] is None or row["spearman"] is None)
        if row["reached"] is not None:
            assert row["reached"] == (row["spearman"] >= row["target"])
        assert (row["expected"] is not None) == (row["axis"] == "K" and row["halves"] is not None)
    assert len(result.headline) == 4
    assert all(("reached" in line) != ("missed" in line) for line in result.headline)


def shortened(stored: StoredRun, name: str, patches: int) -> StoredRun:
    """The run as it were had a layer's channels not found more patches than these."""
    layer = stored.layers[name]
    ids, rows = layer.sites.image_ids.clone(), layer.patches.rows[name, "top"].clone()
    ids[:, patches:] = rows[:, patches:] = -1
    less = replace(
        layer,
        sites=replace(layer.sites, top=layer.sites.top._replace(image_ids=ids)),
        patches=replace(layer.patches, rows={**layer.patches.rows, (name, "top"): rows}),
    )
    return replace(stored, layers={**stored.layers, name: less})


def test_sizes_are_of_the_patches_that_there_are(
    toy_stored: StoredRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = shortened(toy_stored, "conv2", 10)
    few = replace(few, layers={"conv2": few.layers["conv2"]})
    made: list[str] = []
    monkeypatch.setattr(stability, "reopen", lambda run: None)
    monkeypatch.setattr(
        stability, "make_variant", lambda *given, **named: made.append(given[2].axis) or few
    )
    options = Options(bootstrap=20, replicates=20, variants=True)
    found = compute(Context(few, options, tmp_path))
    assert "K" not in made
    names = [r["condition"] for r in rows(found.tables["conditions"], axis="K")]
    assert names == ["4", "6", "8", "10"]
    (own,) = rows(found.tables["reasons"], axis="K", one="8", other="10")
    assert own["target"] == 0.8
    assert own["clusters"] < 1 or own["spearman"] < 1  # two sizes, not one twice
    assert [r["target"] for r in rows(found.tables["reasons"], axis="K")].count(None) == 5
    patches = {r["n_patches"] for r in rows(found.tables["scores"], axis="images")}
    assert max(patches) == 5
    said = "no channel has more than 10 of the 12 patches asked for"
    assert sum(said in note for note in found.notes) == 1
    assert "K = 24 is left out: there are no more patches" in found.notes


def test_a_layer_of_fewer_patches_than_another_has_no_target_of_its_own(
    toy_stored: StoredRun, tmp_path: Path
) -> None:
    few = shortened(toy_stored, "conv2", 9)
    found = compute(Context(few, Options(bootstrap=20, replicates=20), tmp_path))
    targets = {
        r["layer"]: r["target"]
        for r in rows(found.tables["reasons"], axis="K", one="10", other="12")
    }
    assert targets == {"conv1": 0.8, "conv2": None}
    assert "no channel of conv2 has more than 9 patches: every K above is the same there" in (
        found.notes
    )
    reached = [line for line in found.headline if "conv2, K" in line]
    assert not reached


@pytest.mark.parametrize(("found", "names"), [(12, ["8", "12"]), (8, ["8"])])
def test_the_deeper_variant_is_named_after_what_it_found(
    toy_stored: StoredRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, found: int,
    names: list[str],
) -> None:  # fmt: skip
    one = replace(toy_stored, layers={"conv2": toy_stored.layers["conv2"]})
    mine = replace(one.config.mine, top_k=8)
    few = replace(shortened(one, "conv2", 8), config=replace(one.config, mine=mine))
    monkeypatch.setattr(stability, "reopen", lambda run: None)
    monkeypatch.setattr(
        stability, "make_variant", lambda *given, **named: shortened(one, "conv2", found)
    )
    listed = compute(Context(few, Options(bootstrap=20, replicates=20, variants=True), tmp_path))
    of_k = [r["condition"] for r in rows(listed.tables["conditions"], axis="K")]
    assert of_k[-len(names) :] == names
    assert f"K = 16 was mined, but no channel has more than {found} patches" in listed.notes


def test_sizes_stand_by_number(result: Result) -> None:
    ordered = [(int(r["one"]), int(r["other"])) for r in rows(result.tables["reasons"], axis="K")]
    assert ordered
    assert all(one < other for one, other in ordered)
    for row in rows(result.tables["reasons"], axis="K"):
        assert row["expected"] <= 1


def test_what_moved_a_ranking_is_said_in_words() -> None:
    row = {
        "only_s": 0.9, "only_q": 0.61, "only_d": None, "same_k": 0.5, "spearman_same_k": 0.8,
        "halves": 0.2, "expected": 0.93,
    }  # fmt: skip
    assert why_missed(row) == (
        "Q alone takes it to 0.61, k̂ stays in 50% of channels, with ρ 0.80, two halves of the "
        "images agree to 0.20, an average over patches of that reliability would have 0.93"
    )
    nothing = dict.fromkeys(row)
    assert why_missed(nothing) == "nothing to tell it from"


def test_tables_alone_make_the_figures(result: Result, tmp_path: Path) -> None:
    one_layer = {
        name: result.tables[name].filter(pc.equal(result.tables[name]["layer"], "conv2"))
        for name in ("correlations", "reasons")
    }
    files = PART.draw(one_layer, tmp_path / "stability")
    assert [f.name for f in files] == [
        f"{stem}.{form}"
        for stem in ("stability", "stability-components")
        for form in ("png", "svg", "pdf")
    ]
    text = files[1].read_text(encoding="utf-8")
    (row,) = rows(
        result.tables["correlations"], axis="patch", layer="conv2", measure="log_psi",
        one="× 0.75", other="× 1",
    )  # fmt: skip
    assert f"{row['spearman']:.2f}" in text
    assert "conv2: side of crops" in text


def test_without_labels_or_halves_the_rest_is_compared(
    toy_stored: StoredRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layers = {"conv2": replace(toy_stored.layers["conv2"], image_labels=None)}
    bare = replace(toy_stored, layers=layers)
    monkeypatch.setattr(
        "psi_engine.validation.parts.stability.smallest_pool", lambda layer, listed: 5
    )
    found = compute(Context(bare, Options(bootstrap=20, replicates=20), tmp_path))
    rows = found.tables["correlations"].to_pylist()
    assert {r["measure"] for r in rows} == {"log_psi", "s", "d", "s_z", "d_z"}
    assert {r["axis"] for r in rows} == {"K", "seed", "M", "k", "solver"}
    assert found.notes == ("halves of the images are left out: half a pool is too small (conv2)",)
    reasons = found.tables["reasons"].to_pylist()
    assert {r["only_q"] for r in reasons} == {r["expected"] for r in reasons} == {None}
    assert not (tmp_path / "variants").exists()  # nobody asked for them
    assert PART.draw(found.tables, tmp_path / "figure")
