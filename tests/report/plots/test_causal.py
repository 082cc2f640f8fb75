"""The bars of the swaps, from their table alone."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

from psi_engine.causal.summary import SUMMARY_SCHEMA, controls_of
from psi_engine.report.plots.causal import draw


def summary(layers: list[str], blends: list[str], *, n: int = 5) -> pa.Table:
    rows = [
        {
            "level": "all" if layer is None else "layer", "layer": layer, "hosts": hosts,
            "blend": blend, "control": control, "n": n, "mean_aligned": 0.3,
            "aligned_low": 0.2 if n > 1 else None, "aligned_high": 0.4 if n > 1 else None,
            "mean_control": -0.1, "control_low": -0.2 if n > 1 else None,
            "control_high": 0.05 if n > 1 else None, "t_p_holm": 0.0123 if n > 1 else None,
        }
        for layer in [*layers, None]
        for hosts in ("top", "random")
        for blend in blends
        for control in controls_of(hosts)
    ]  # fmt: skip
    return pa.Table.from_pylist(rows, SUMMARY_SCHEMA)


@pytest.mark.parametrize("layers", [["layer3", "layer4"], ["layer4"]])
def test_a_panel_per_layer_and_kind_of_host(layers: list[str], tmp_path: Path) -> None:
    table = {"summary": summary(layers, ["hard", "feathered"])}
    files = draw(table, tmp_path / "causal")
    assert [path.name for path in files] == ["causal.png", "causal.svg", "causal.pdf"]
    text = files[1].read_text()
    for layer in (*layers, *(["all layers"] if len(layers) > 1 else [])):
        for hosts in ("top", "random"):
            assert f"{layer}, {hosts} hosts, 5 channels" in text
    assert ("all layers" in text) == (len(layers) > 1)
    assert text.count("p = 0.012") == (4 + 3) * (3 if len(layers) > 1 else 1)
    first = [path.read_bytes() for path in files]
    assert [path.read_bytes() for path in draw(table, tmp_path / "causal")] == first


def test_one_channel_has_bars_without_intervals(tmp_path: Path) -> None:
    files = draw({"summary": summary(["head"], ["feathered"], n=1)}, tmp_path / "causal")
    assert "p = " not in files[1].read_text()


def test_no_tests_draw_nothing(tmp_path: Path) -> None:
    assert draw({"summary": SUMMARY_SCHEMA.empty_table()}, tmp_path / "causal") == []
    assert not list(tmp_path.iterdir())


def test_a_layer_without_finite_hosts_of_a_kind_leaves_its_panel_empty(tmp_path: Path) -> None:
    rows = summary(["layer3", "layer4"], ["hard", "feathered"]).to_pylist()
    rows = [row for row in rows if (row["layer"], row["hosts"]) != ("layer4", "random")]
    rows = [row for row in rows if (row["layer"], row["blend"]) != ("layer3", "feathered")]
    files = draw({"summary": pa.Table.from_pylist(rows, SUMMARY_SCHEMA)}, tmp_path / "causal")
    assert "layer4, random hosts, 0 channels" in files[1].read_text()
