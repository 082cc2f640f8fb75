"""The figure of real channels against random sets."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa

from psi_engine.report.plots.null_baseline import draw


def test_no_areas_draw_nothing(tmp_path: Path) -> None:
    empty = {"units": pa.table({"layer": pa.array([], pa.string())}), "areas": pa.table({})}
    assert draw(empty, tmp_path / "null-baseline") == []
    assert not list(tmp_path.iterdir())
