"""What the page is given is what the run's tables hold."""

from __future__ import annotations

import json
from collections import Counter

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from psi_engine.artifacts import Run
from psi_engine.report.page import core, details
from psi_engine.report.page.numbers import column, printable, rounded, script
from psi_engine.report.page.sites import channel_rows, group_clusters, order_sites
from psi_engine.types import VERDICTS


def test_numbers_have_the_digits_asked_for_and_no_nan() -> None:
    assert rounded([0.123456789, None, float("nan"), float("inf"), 0.0], 3) == [
        0.123, None, None, None, 0.0,
    ]  # fmt: skip
    table = pa.table({"x": [0.1 + 0.2, None], "n": [3, 4], "t": ["a", None]})
    assert column(table, "x", None) == [0.1 + 0.2, None]
    assert column(table, "x") == [0.3, None]
    assert column(table, "n") == [3, 4]
    assert column(table, "t") == ["a", None]


def test_a_script_holds_no_markup_and_nothing_that_an_encoding_can_break() -> None:
    name = "</script>\u2028\u2029 ü \udcff"  # the last: a byte of a file name that is no text
    text = script("core", {"name": name})
    assert text.startswith('PSI.receive("core",')
    assert "<" not in text
    assert text.isascii()
    assert json.loads(text.partition(",")[2].removesuffix(");\n")) == {"name": name}
    assert printable(name).encode("utf-8").endswith(b" \xc3\xbc \\udcff")
    with pytest.raises(ValueError, match="not JSON compliant"):
        script("core", float("nan"))


def test_columns_are_those_of_the_table(toy_run: Run) -> None:
    table = toy_run.channels
    columns = core.channel_columns(table)
    assert {len(values) for values in columns.values()} == {len(table)}
    names = core.layers_of(table)
    assert [names[i] for i in columns["layer"]] == table["layer"].to_pylist()
    for name in ("psi_p_adj", "clarity_p_adj", "log_psi"):
        assert columns[name] == table[name].to_pylist()  # to the last digit
    for name, values in columns.items():
        if name not in ("layer", "status", "reason"):
            held = np.array([np.nan if x is None else x for x in values], float)
            wanted = table[name].to_numpy(zero_copy_only=False).astype(float)
            np.testing.assert_allclose(held, wanted, rtol=5.1e-5)


def test_rows_of_channels_are_found_and_others_are_not() -> None:
    channels = pa.table({"layer": ["b", "b", "a"], "channel": [5, 2, 2]})
    asked = pa.table({"layer": ["a", "b", "b", "a", "c"], "channel": [2, 2, 5, 5, 2]})
    assert channel_rows(channels, asked).tolist() == [2, 1, 0, -1, -1]


def test_groups_come_largest_first_and_patches_by_group_and_rank(toy_run: Run) -> None:
    table, sites = toy_run.channels, toy_run.sites
    groups = group_clusters(table, toy_run.clusters)
    shown = order_sites(table, groups, sites)
    lists = details.cluster_lists(len(table), groups, shown, None)
    for row, channel in enumerate(table.select(["layer", "channel"]).to_pylist()):

        def mine(entry: dict[str, object], channel: dict[str, object] = channel) -> bool:
            return all(entry[name] == value for name, value in channel.items())

        clusters = [c for c in toy_run.clusters.to_pylist() if mine(c)]
        clusters.sort(key=lambda c: (-c["size"], c["cluster"]))
        assert [c["cluster"] for c in lists[row]] == [c["cluster"] for c in clusters]
        assert [c["size"] for c in lists[row]] == [c["size"] for c in clusters]
        wanted = []
        for cluster in [c["cluster"] for c in clusters] + [None]:
            own = [s for s in sites.to_pylist() if mine(s) and s["kind"] == "top"]
            own = [s for s in own if s["cluster"] == cluster]
            wanted += [s["rank"] for s in sorted(own, key=lambda s: s["rank"])]
        start, end = shown.bounds[row : row + 2]
        assert shown.table["rank"].to_pylist()[start:end] == wanted
        for cluster, found in zip(clusters, lists[row], strict=True):
            medoid = [s["rank"] for s in own if s["rank"] == cluster["medoid_rank"]]
            assert found["medoid"] == -1  # no sheet was drawn
            assert len(medoid) <= 1


def test_shards_hold_labels_nulls_and_silhouettes(toy_run: Run) -> None:
    table = toy_run.channels
    groups = group_clusters(table, toy_run.clusters)
    shown = order_sites(table, groups, toy_run.sites)
    lists = details.cluster_lists(len(table), groups, shown, None)
    nulls = details.null_quantiles(table, pq.read_table(toy_run.path / "nulls.parquet"))
    names = ("eins", "zwei", "drei")
    (shard,) = details.shards(lists, shown, None, names, nulls, {})
    assert len(shard["rows"]) == len(table) <= details.SHARD
    row = next(i for i, own in enumerate(lists) if len(own) > 1)
    start, end = shown.bounds[row : row + 2]
    labels = shown.table["label"].to_pylist()[start:end]
    group = shown.patches.cluster[start:end].tolist()
    for number, cluster in enumerate(shard["rows"][row]["clusters"]):
        counted = Counter(names[x] for x, g in zip(labels, group, strict=True) if g == number)
        assert dict(cluster["labels"]) == counted
        assert cluster["others"] == 0
    patches = shard["rows"][row]["patches"]
    assert [shard["strings"][i] for i in patches["label"]] == [names[x] for x in labels]
    silhouettes = shown.table["silhouette"].to_pylist()[start:end]
    assert patches["silhouette"] == pytest.approx(silhouettes, rel=1e-3)
    assert len(shard["rows"][row]["nulls"]["s"]) == 41
    assert sorted(shard["rows"][row]["nulls"]["s"]) == shard["rows"][row]["nulls"]["s"]


def test_labels_beyond_five_are_counted_together() -> None:
    found = details._histogram([*"aaabbccdefg", None])
    assert found["labels"] == [["a", 3], ["b", 2], ["c", 2], ["d", 1], ["e", 1]]
    assert found["others"] == 2


def test_facts_name_every_fallback(toy_run: Run) -> None:
    toy_run.manifest["stages"]["mine"]["notes"] = ["layer x fell back"]
    toy_run.manifest["stages"]["mine"]["skipped"] = [{"key": "broken.png", "reason": "no image"}]
    facts = core.run_facts(toy_run, toy_run.channels, toy_run.nulls)
    assert "layer x fell back" in facts["notes"]
    assert any("broken.png: no image" in note for note in facts["notes"])
    assert [c["key"] for c in facts["components"]] == ["s", "q", "d"]
    assert [v["name"] for v in facts["verdicts"]] == list(VERDICTS)
    said = dict(facts["facts"])
    assert "tests.toy:model" in said["Model"]
    assert "S pool" in said["Nulls"]
    del toy_run.manifest["stages"]["mine"]["skipped"][:]
    toy_run.manifest["stages"]["mine"]["notes"] = []
