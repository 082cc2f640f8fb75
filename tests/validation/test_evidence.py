"""Components scored apart, on a world whose answer is known, and what is made of them."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
import torch

from psi_engine import ScoreConfig, score
from psi_engine.inputs import Texts
from psi_engine.ops.random import hash_keys, string_key
from psi_engine.validation.combinations import COMBINATIONS, Evidence, psi
from psi_engine.validation.concept_mix import concept_mix
from psi_engine.validation.evidence import EvidenceConfig, gather, rotate
from psi_engine.validation.ground_truth import judge_units, units_table
from psi_engine.validation.headline import BEST_OF_EACH, headline
from psi_engine.validation.measures import measures
from psi_engine.validation.plan import split_classes
from psi_engine.validation.planted import planted_units
from tests.validation import world

HALVES = split_classes(list(range(world.CLASSES)), 0)
CONFIG = EvidenceConfig(ScoreConfig(replicates=60, seed=3), channel_replicates=4, device="cpu")
TEXTS = Texts(world.texts(), None, None, None)


@pytest.fixture(scope="module")
def mix():
    return concept_mix(
        world.embeddings(0.1), world.labels(), HALVES, world.PARENTS, top_k=10, sets=12, seed=0
    )


@pytest.fixture(scope="module")
def evidence(mix):
    return gather(mix, TEXTS, world.PARENTS, CONFIG)


@pytest.fixture(scope="module")
def units(mix, evidence) -> pa.Table:
    return units_table(mix, evidence[0], None)


@pytest.fixture(scope="module")
def table(units) -> pa.Table:
    return judge_units(units, resamples=40)


def area(table: pa.Table, measure: str, contrast: str, half: str = "both") -> float:
    found = [
        row["auroc"]
        for row in table.to_pylist()
        if (row["measure"], row["contrast"], row["half"]) == (measure, contrast, half)
    ]
    assert len(found) == 1
    return found[0]


def test_every_null_of_every_component_is_there(evidence) -> None:
    columns, notes = evidence
    s = ("rotation-shared", "rotation", "rotation-samples", "rotation-tangent", "pool")
    expected = {f"s|{null}.{x}" for null in (*s, "neighborhood") for x in "zp"}
    expected |= {f"{q}|{n}.z" for q in ("q", "q_coarse") for n in ("permutation", "exact")}
    for measure in ("gap", "contrast", "margin"):
        d = f"d:{measure}:concept"  # one prompt a concept: no prompt level
        nulls = ("text-rotation", "text-shuffle", "partition", "pool", "neighborhood")
        expected |= {f"{d}|{null}.p" for null in nulls}
        expected |= {d, f"rotated-{d}", f"rotated-{d}|pool.z", f"rotated-{d}|text-rotation.z"}
    assert expected <= columns.keys()
    assert not [name for name in columns if "prompt" in name or "unrelated-text" in name]
    assert any("rotation-shared" in note for note in notes)
    assert not any(note.startswith("no labels") for note in notes)


def test_components_scored_apart_make_the_psi_of_one_call(mix, evidence) -> None:
    columns, _ = evidence
    whole = score(
        mix.embeddings,
        labels=mix.labels,
        text_embeddings=TEXTS.embeddings,
        pool=mix.pool,
        channel_ids=hash_keys(string_key(mix.name), torch.arange(len(mix.plans))),
        config=ScoreConfig(replicates=60, seed=3, q_null="exact"),
        device="cpu",
    )
    z = {"s": "s|pool.z", "q": "q|exact.z", "d": "d:margin:concept|text-rotation.z"}
    found = {component: columns[name] for component, name in z.items()}
    for component, values in found.items():
        np.testing.assert_array_equal(values, getattr(whole, f"{component}_z").numpy())
    nothing = np.array([])
    combined = psi(Evidence({}, found, {}, nothing, nothing))
    np.testing.assert_allclose(combined, whole.log_psi.numpy(), atol=1e-12, rtol=0)


def test_clear_classes_are_told_apart_and_related_ones_by_the_fine_labels_only(table) -> None:
    for size in (2, 3, 5):
        for measure in ("S raw", "Q exact, labels full", "D contrast concept raw"):
            assert area(table, measure, f"poly{size}-unrelated / mono") == 1.0
        assert area(table, "Q exact, labels coarse", f"poly{size}-unrelated / mono") == 1.0
        assert area(table, "Q exact, labels full", f"poly{size}-related / mono") == 1.0
        assert area(table, "Q exact, labels coarse", f"poly{size}-related / mono") == 0.5
        psi_names = "PSI: S neighborhood, D contrast concept neighborhood, labels full"
        assert area(table, psi_names, f"poly{size}-unrelated / mono") == 1.0
    # the degenerate null knows nothing of anything
    assert area(table, "S rotation-shared", "worst unrelated") == 0.5
    # clarity calls noise the most polysemantic of all
    assert area(table, "one_minus_clarity", "poly2-unrelated / noise") == 0.0


def test_shuffled_truth_leaves_nothing(units) -> None:
    random = np.random.default_rng(0)
    areas = []
    for _ in range(6):
        kinds = random.permutation(units["kind"].to_numpy(zero_copy_only=False))
        shuffled = units.select(["suite", "kind", "half", "s", "q"])
        shuffled = shuffled.set_column(1, "kind", pa.array(kinds))
        table = judge_units(shuffled, resamples=2)
        plain = [row for row in table.to_pylist() if "/" in row["contrast"]]
        areas += [row["auroc"] for row in plain if row["half"] == "both"]
    # each is of 12 against 12 with a standard error of 0.12, the mean of six shuffles far less
    assert len(areas) == 6 * 2 * 12
    assert abs(np.mean(areas) - 0.5) < 0.06


def test_worst_rows_are_the_lowest_and_intervals_hold_together(table) -> None:
    rows = table.to_pylist()
    for half in ("tuning", "held-out", "both"):
        own = [r for r in rows if r["measure"] == "S neighborhood" and r["half"] == half]
        for relation in ("unrelated", "related"):
            plain = [r for r in own if f"-{relation} /" in r["contrast"]]
            worst = next(r for r in own if r["contrast"] == f"worst {relation}")
            assert len(plain) == 6
            for name in ("auroc", "ap"):
                assert worst[name] == min(r[name] for r in plain)
                assert all(r[f"{name}_low"] <= r[f"{name}_high"] for r in plain)
                assert worst[f"{name}_high"] <= min(r[f"{name}_high"] for r in plain) + 1e-12
            assert worst["n_high"] == (12 if half == "both" else 6)


def test_a_combination_is_plugged_in_by_name(units) -> None:
    seen: list[Evidence] = []

    def minimum(found: Evidence) -> np.ndarray:
        seen.append(found)
        return np.min(list(found.z.values()), axis=0)

    table = judge_units(units, combinations={"minimum": minimum}, resamples=2)
    name = "minimum: S pool, D contrast concept pool, labels none"
    assert area(table, name, "poly2-unrelated / mono", "tuning") == 1.0
    one = next(e for e in seen if set(e.z) == {"s", "d"})
    assert one.z.keys() == one.p.keys() == one.raw.keys()
    assert one.tuning.sum() == len(one.kinds) / 2
    assert any(set(e.z) == {"s", "q", "d"} for e in seen)
    assert not any(row["family"] == "PSI" for row in table.to_pylist())


def test_a_measure_without_any_score_is_left_out_and_single_ones_count(units) -> None:
    columns = {"s": np.full(len(units), np.nan), "q": np.arange(float(len(units)))}
    columns["q"][0] = np.nan
    names = [m.name for m in measures(columns, np.array([""]), np.array([True]))]
    assert names == ["S raw", "Q raw, labels full"]
    broken = units.select(["suite", "kind", "half"])
    for name, values in columns.items():
        broken = broken.append_column(name, pa.array(values, mask=np.isnan(values)))
    rows = judge_units(broken, resamples=2).to_pylist()
    assert {row["measure"] for row in rows} == {"Q raw, labels full"}
    missing = {r["missing"] for r in rows if r["contrast"] == "poly2-unrelated / mono"}
    assert missing == {1, 0}  # the first unit is a mono one of the tuning half


def test_the_headline_picks_combinations_on_the_tuning_half(table) -> None:
    rows = headline(table, "concept-mix")
    families = [row["family"] for row in rows]
    order = ["peer", "component", "control", *sorted(COMBINATIONS)]
    assert families == sorted(families, key=order.index)
    combined = [row for row in rows if row["family"] == "PSI"]
    assert 3 * BEST_OF_EACH <= len(combined) <= 3 * (BEST_OF_EACH + 1)
    default = "PSI: S pool, D margin concept text-rotation, labels "
    shown = {row["measure"] for row in combined}
    assert {default + labels for labels in ("none", "full", "coarse")} <= shown
    for labels in ("none", "full", "coarse"):
        picked = [row["measure"] for row in combined if row["labels"] == labels]
        picked = [name for name in picked if name != default + labels] or picked
        everyone = [
            (row["auroc"], row["measure"])
            for row in table.to_pylist()
            if (row["family"], row["labels"], row["half"]) == ("PSI", labels, "tuning")
            and row["contrast"] == "worst unrelated"
        ]
        least = min(value for value, name in everyone if name in picked)
        assert all(value <= least for value, name in everyone if name not in picked)


def test_peers_of_planted_units_include_the_ones_that_need_the_lowest_images() -> None:
    suite = planted_units(
        world.logits(), world.embeddings(), world.labels(), HALVES, {},
        top_k=10, pool=200, units=4, seed=0,
    )  # fmt: skip
    columns, notes = gather(suite, Texts(None, None, None, None), {}, CONFIG)
    assert {"peer:one_minus_mis", "peer:one_minus_ii"} <= columns.keys()
    assert not [name for name in columns if name.startswith(("d:", "rotated", "q_coarse"))]
    assert any("no texts" in note for note in notes)
    kinds = [plan.kind for plan in suite.plans]
    mono = columns["peer:pure_ratio"][[kind == "mono" for kind in kinds]]
    poly = columns["peer:pure_ratio"][[kind == "poly2-unrelated" for kind in kinds]]
    assert mono.max() < poly.min()


def test_rotated_texts_keep_their_angles_and_lose_their_place() -> None:
    texts = world.texts()
    turned = rotate(texts, 0)
    torch.testing.assert_close(turned @ turned.T, (texts @ texts.T).double(), atol=1e-12, rtol=0)
    assert (turned @ texts.T.double()).diagonal().abs().mean() < 0.4
    assert torch.equal(turned, rotate(texts, 0))
    assert not torch.equal(turned, rotate(texts, 1))
