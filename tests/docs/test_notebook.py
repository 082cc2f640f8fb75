"""The notebook is kept without outputs, and runs from top to bottom."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nbformat
import pytest

from tests.docs.pages import PROJECT

NOTEBOOK = PROJECT / "docs/demo.ipynb"


@pytest.fixture
def notebook() -> Any:
    return nbformat.read(NOTEBOOK, as_version=4)


def test_it_is_valid_small_and_without_outputs(notebook: Any) -> None:
    nbformat.validate(notebook)
    assert NOTEBOOK.stat().st_size < 50_000
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert cells
    for cell in cells:
        assert cell.outputs == []
        assert cell.execution_count is None
        compile(cell.source, cell.id, "exec")


@pytest.mark.slow
def test_it_runs(notebook: Any, tmp_path: Path) -> None:
    from nbclient import NotebookClient

    place = {"metadata": {"path": str(tmp_path)}}
    NotebookClient(notebook, timeout=500, resources=place).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 3
    told = "".join(output.get("data", {}).get("text/plain", "") for output in outputs)
    assert "'PSI': {'mono': 1.0, 'random': 1.0}" in told
    assert "'verdict': 'polysemantic'" in told
