"""The tests of the swaps against loops over their rows."""

from __future__ import annotations

import math

import numpy as np
import pyarrow as pa
import pytest
from scipy import stats

from psi_engine.causal.config import CONDITIONS, CONTROLS
from psi_engine.causal.summary import compare_conditions
from tests.reference.paired_tests import holm

CHANNELS = {("a", 3): 8, ("a", 5): 8, ("a", 9): 5, ("b", 0): 8, ("b", 1): 6}
SHIFT = {"aligned": 0.3, "non-aligned": 0.0, "random": -0.5, "shuffled-position": 0.1,
         "ablate-elsewhere": 0.3}  # fmt: skip


def swaps(blends: tuple[str, ...] = ("hard",), hosts: tuple[str, ...] = ("top",)) -> list[dict]:
    rng = np.random.default_rng(0)
    return [
        {
            "layer": layer, "channel": channel, "hosts": kind, "blend": blend,
            "condition": condition, "delta": 4 * x, "delta_units": x,
        }
        for (layer, channel), count in CHANNELS.items()
        for kind in hosts
        for _ in range(count)
        for blend in blends
        for condition in CONDITIONS
        for x in [rng.normal(SHIFT[condition], 0.2)]
    ]  # fmt: skip


def table(rows: list[dict]) -> pa.Table:
    return pa.Table.from_pylist(rows)


def pick(rows: list[dict], condition: str, layer: str, channel: int) -> list[float]:
    return [
        r["delta_units"]
        for r in rows
        if (r["condition"], r["layer"], r["channel"]) == (condition, layer, channel)
    ]


def test_each_channels_tests_are_scipys_on_its_hosts() -> None:
    rows = swaps()
    found = compare_conditions(table(rows), 100, 0).to_pylist()
    channels = [r for r in found if r["level"] == "channel"]
    assert [(r["layer"], r["channel"], r["control"]) for r in channels] == [
        (*place, control) for place in CHANNELS for control in CONTROLS
    ]
    for row in channels:
        aligned = pick(rows, "aligned", row["layer"], row["channel"])
        control = pick(rows, row["control"], row["layer"], row["channel"])
        assert row["n"] == len(aligned)
        assert row["mean_aligned"] == pytest.approx(np.mean(aligned))
        assert row["mean_control"] == pytest.approx(np.mean(control))
        assert row["mean_aligned_raw"] == pytest.approx(4 * np.mean(aligned))
        assert row["mean_control_raw"] == pytest.approx(4 * np.mean(control))
        assert row["t_p"] == pytest.approx(stats.ttest_rel(aligned, control).pvalue)
        assert row["wilcoxon_p"] == pytest.approx(stats.wilcoxon(aligned, control).pvalue)
        assert row["difference_low"] < row["mean_difference"] < row["difference_high"]
        assert row["aligned_low"] < row["mean_aligned"] < row["aligned_high"]
        assert row["control_low"] < row["mean_control"] < row["control_high"]
    for name in ("t_p", "wilcoxon_p"):
        adjusted = holm([r[name] for r in channels])
        assert [r[f"{name}_holm"] for r in channels] == pytest.approx(adjusted)


def test_pooled_pairs_are_the_means_of_channels() -> None:
    rows = swaps()
    found = compare_conditions(table(rows), 100, 0).to_pylist()
    for level, layers in (("layer", ("a", "b")), ("all", (None,))):
        pooled = [r for r in found if r["level"] == level]
        assert len(pooled) == 4 * len(layers)
        for row in pooled:
            places = [p for p in CHANNELS if row["layer"] in (None, p[0])]
            aligned = [float(np.mean(pick(rows, "aligned", *p))) for p in places]
            control = [float(np.mean(pick(rows, row["control"], *p))) for p in places]
            test = stats.ttest_rel(aligned, control)
            assert (row["n"], row["channel"]) == (len(places), None)
            assert row["mean_difference"] == pytest.approx(np.subtract(aligned, control).mean())
            assert (row["t"], row["t_p"]) == pytest.approx((test.statistic, test.pvalue))
            assert row["mean_aligned_raw"] is None
        adjusted = holm([r["t_p"] for r in pooled])
        assert [r["t_p_holm"] for r in pooled] == pytest.approx(adjusted)


def test_hosts_and_blends_are_families_of_their_own() -> None:
    rows = swaps(("hard", "feathered"), ("top", "random"))
    found = compare_conditions(table(rows), 100, 0).to_pylist()
    assert len(found) == 2 * (4 + 3) * (len(CHANNELS) + 2 + 1)
    compared = [{r["control"] for r in found if r["hosts"] == kind} for kind in ("top", "random")]
    assert compared[0] - compared[1] == {"non-aligned"}
    family = [r for r in found if r["level"] == "layer" and r["hosts"] == "random"]
    family = [r for r in family if r["blend"] == "hard"]
    assert [r["t_p_holm"] for r in family] == pytest.approx(holm([r["t_p"] for r in family]))
    only = [r for r in rows if (r["hosts"], r["blend"]) == ("random", "feathered")]
    alone = compare_conditions(table(only), 100, 0).to_pylist()
    assert alone == [r for r in found if (r["hosts"], r["blend"]) == ("random", "feathered")]


def test_a_host_that_is_not_finite_is_left_out_of_all_conditions() -> None:
    rows = swaps()
    broken = next(i for i, r in enumerate(rows) if r["condition"] == "random")
    rows[broken] |= {"delta": None, "delta_units": None}
    first = next(r for r in compare_conditions(table(rows), 100, 0).to_pylist())
    assert first["n"] == 7
    kept = compare_conditions(table(rows[5:]), 100, 0).to_pylist()[0]
    assert first == kept


def test_one_channel_has_no_spread_to_test_pooled() -> None:
    rows = [r for r in swaps() if r["layer"] == "b" and r["channel"] == 0]
    found = compare_conditions(table(rows), 100, 0).to_pylist()
    pooled = [r for r in found if r["level"] == "all"]
    assert [r["n"] for r in pooled] == [1] * 4
    assert all(r["t_p"] is r["aligned_low"] is r["t_p_holm"] is None for r in pooled)
    assert all(math.isfinite(r["mean_difference"]) for r in pooled)
