"""The figures of a plain run: from its tables, the same each time, none where nothing is."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from psi_engine.report.plots import run as plots
from psi_engine.types import VERDICTS

FORMS = ("png", "svg", "pdf")


def tables(layers: tuple[str, ...] = ("b<1>", "a&2"), count: int = 8) -> dict[str, pa.Table]:
    rng = np.random.default_rng(0)
    rows: list[dict[str, Any]] = []
    nulls: list[dict[str, Any]] = []
    for layer in layers:
        for channel in range(count):
            failed = channel == 3
            row: dict[str, Any] = {"layer": layer, "channel": channel}
            row["verdict"] = VERDICTS[3] if failed else VERDICTS[channel % 3]
            row["log_psi"] = None if failed else -float(rng.exponential())
            for component in "sqd":
                row[component] = None if failed else float(rng.random())
                row[f"{component}_z"] = None if failed else float(rng.normal())
                if not failed:
                    nulls.append(
                        {"layer": layer, "channel": channel, "component": component, "null": "pool",
                         "replicates": 20, "quantiles": sorted(rng.random(41).tolist())}
                    )  # fmt: skip
            rows.append(row)
    return {"channels": pa.Table.from_pylist(rows), "nulls": pa.Table.from_pylist(nulls)}


class Stand:
    """A run of these tables."""

    def __init__(self, path: Path, held: dict[str, pa.Table]) -> None:
        self.path, self.channels, self.nulls = path, held["channels"], held.get("nulls")
        path.mkdir()
        if "nulls" in held:
            (path / "nulls.parquet").touch()


@pytest.mark.slow
def test_every_figure_in_every_form_the_same_each_time(tmp_path: Path) -> None:
    held = tables()
    files = plots.draw_run(Stand(tmp_path / "run", held), tmp_path / "made" / "here")  # type: ignore[arg-type]
    assert [file.name for file in files] == [
        f"run-{name}.{form}"
        for name in ("psi", "verdicts", "components", "nulls")
        for form in FORMS
    ]
    again = plots.draw_run(Stand(tmp_path / "same", held), tmp_path / "again")  # type: ignore[arg-type]
    assert [file.read_bytes() for file in files] == [file.read_bytes() for file in again]
    words = {file.stem: file.read_text() for file in files if file.suffix == ".svg"}
    assert all("b&lt;1&gt;" in text for text in words.values())
    assert "b&lt;1&gt;  (7)" in words["run-psi"]  # scored ones
    assert "S against pool" in words["run-nulls"]
    assert "z of D" in words["run-components"]


def test_verdicts_are_counted_by_layer(tmp_path: Path) -> None:
    _, svg, _ = plots.draw_verdicts(tables(("only",), 32), tmp_path / "v")
    text = svg.read_text()
    counts = re.findall(r">(\d+)</text>", text)
    assert counts == ["10", "11", "10", "1"]  # by turns, and one of the first is not scorable
    assert all(verdict in text for verdict in VERDICTS)


def test_points_are_drawn_as_such_unless_there_are_very_many(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = plots.draw_psi(tables(), tmp_path / "few")[1].read_text()
    assert "<image" not in few
    monkeypatch.setattr(plots, "_MOST_POINTS", 10)
    assert "<image" in plots.draw_psi(tables(), tmp_path / "many")[1].read_text()


def test_without_labels_or_text_or_nulls_there_are_fewer(tmp_path: Path) -> None:
    held = tables()
    channels = held["channels"]

    def blank(*names: str) -> dict[str, pa.Table]:
        table = channels
        for name in names:
            column = table.schema.get_field_index(name)
            table = table.set_column(column, name, pa.nulls(len(table), pa.float64()))
        return {"channels": table}

    text = plots.draw_components(blank("d", "d_z"), tmp_path / "c")[1].read_text()
    assert "z of Q" in text
    assert plots.draw_components(blank("d_z", "q_z"), tmp_path / "none") == []
    assert plots.draw_nulls({"channels": channels}, tmp_path / "none") == []
    assert plots.draw_nulls(held | {"nulls": held["nulls"].slice(0, 0)}, tmp_path / "none") == []
    assert plots.draw_psi(blank("log_psi"), tmp_path / "none") == []
    assert len(plots.draw_verdicts(blank("log_psi"), tmp_path / "v")) == 3
    old = Stand(tmp_path / "old", {"channels": channels})
    names = [file.name for file in plots.draw_run(old, tmp_path / "figures")]  # type: ignore[arg-type]
    assert "run-psi.pdf" in names
    assert not any("nulls" in name for name in names)


def test_many_layers_stand_in_rows(tmp_path: Path) -> None:
    held = tables(tuple(f"layer{number}" for number in range(6)), 6)
    text = plots.draw_components(held, tmp_path / "c")[1].read_text()
    assert [f"layer{number}, 5 channels" in text for number in range(6)] == [True] * 6


def test_band_and_points_are_the_tables_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Channels stand by z; the band is the 5 % and 95 % quantile, the line the median."""
    from psi_engine.report.plots.style import panels

    held = tables(("only",), 8)
    _, axes = panels(1, 1)
    plots._against_null(axes[0, 0], held["channels"], held["nulls"], "d", False)
    rows = [row for row in held["channels"].to_pylist() if row["d_z"] is not None]
    rows.sort(key=lambda row: row["d_z"])
    drawn = {
        row["channel"]: row["quantiles"]
        for row in held["nulls"].to_pylist()
        if row["component"] == "d"
    }
    points = axes[0, 0].collections[-1].get_offsets()[:, 1]
    assert points.tolist() == [row["d"] for row in rows]
    (line,) = axes[0, 0].lines
    assert line.get_ydata().tolist() == [drawn[row["channel"]][20] for row in rows]
    band = axes[0, 0].collections[0].get_paths()[0].vertices[:, 1]
    assert set(band.tolist()) == {drawn[row["channel"]][place] for row in rows for place in (2, 38)}
