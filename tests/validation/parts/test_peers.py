"""Agreement with the peers: their columns, SciPy's coefficients, the largest differences."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from scipy import stats

from psi_engine.validation.part import Context
from psi_engine.validation.parts.peers import OURS, PART, _disagreements


def rows(table: Any, **named: Any) -> list[dict[str, Any]]:
    return [r for r in table.to_pylist() if all(r[name] == value for name, value in named.items())]


def test_columns_are_the_runs_and_coefficients_scipys(context: Context, tmp_path: Path) -> None:
    result = PART.compute(context)
    values = rows(result.tables["values"], layer="conv2")
    own = [r for r in context.stored.run.channels.to_pylist() if r["layer"] == "conv2"]
    for theirs, ours in (("monosemanticity", "monosemanticity"), ("clarity", "clarity"),
                         ("pure_intra", "pure_intra"), ("log_psi", "log_psi")):  # fmt: skip
        want = [row[ours] for row in own]
        assert [row[theirs] for row in values] == pytest.approx(
            want, abs=2e-8
        )  # the scorer rounds rows to its grid
    listed = rows(result.tables["correlations"], layer="conv2", measure="s_z")
    assert {"semanticlens_polysemanticity_centred", "pure_ratio"} <= {row["peer"] for row in listed}
    for row in listed:
        pairs = [(v["s_z"], v[row["peer"]]) for v in values if v[row["peer"]] is not None]
        x, y = np.array(pairs).T
        assert row["n"] == len(x) == 7  # without the dead channel
        assert row["spearman"] == pytest.approx(stats.spearmanr(x, y).statistic)
        assert row["kendall"] == pytest.approx(stats.kendalltau(x, y).statistic)
    assert any("missing patches" in note for note in result.notes)
    assert any("MIS and II are left out" in note for note in result.notes)
    files = PART.draw(result.tables, tmp_path / "peers")
    assert "− clarity" in files[1].read_text()


def test_layers_whose_channels_all_fail_leave_empty_tables_and_no_figure(
    context: Context, tmp_path: Path
) -> None:
    """No scores, and no patches to measure the peers on."""
    stored = context.stored
    table = stored.run.channels
    for name in OURS:
        blank = pa.nulls(len(table), pa.float64())
        table = table.set_column(table.column_names.index(name), name, blank)
    run = SimpleNamespace(channels=table, path=stored.run.path)
    layers = {}
    for name, layer in stored.layers.items():
        flat = replace(layer.sites.stats, minimum=layer.sites.stats.maximum)
        layers[name] = replace(layer, sites=replace(layer.sites, stats=flat))
        assert not layers[name].mask.any()
    failed = replace(context, stored=replace(stored, run=run, layers=layers))
    result = PART.compute(failed)
    whole = PART.compute(context)
    for name in ("correlations", "disagreements"):
        assert len(result.tables[name]) == 0
        assert result.tables[name].schema == whole.tables[name].schema
    assert len(result.tables["values"]) == len(table)
    assert PART.draw(result.tables, tmp_path / "peers") == []
    assert not list(tmp_path.glob("*.svg"))


def test_disagreements_are_the_largest_differences_on_either_side() -> None:
    psi = np.array([5.0, 4, 3, 2, 1, np.nan])
    peers = {"clarity": np.array([0.9, 0.1, 0.5, 0.4, 0.3, 0.2]), "pure_intra": psi}
    found = _disagreements("a", list(range(10, 16)), psi, peers)
    assert {row["peer"] for row in found} == {"clarity"}  # the other has no direction
    # by PSI 10 is the most polysemantic; by clarity, turned, the least
    assert (found[0]["channel"], found[0]["rank_psi"], found[0]["rank_peer"]) == (10, 1.0, 0.0)
    assert [row["channel"] for row in found] == [10, 12, 14, 11]
    assert [row["difference"] for row in found] == pytest.approx([1.0, 0.25, -0.75, -0.25])
