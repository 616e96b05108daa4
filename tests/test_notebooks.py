"""Notebooks hold few cells, no `def`, no outputs, and run on what `smoke` left."""

import os
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

FOLDER = Path(__file__).parent.parent / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_no_library_and_carries_no_outputs(path):
    cells = [cell for cell in nbformat.read(path, 4).cells if cell.cell_type == "code"]
    assert len(cells) <= 12
    assert not [cell.source for cell in cells if "def " in cell.source]
    assert not [cell.outputs for cell in cells if cell.outputs]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_on_the_smoke_results(path, smoke, monkeypatch):
    monkeypatch.setitem(os.environ, "VAR_SCALING_RESULTS", str(smoke / "smoke/results.parquet"))
    monkeypatch.setitem(os.environ, "VAR_SCALING_HOME", str(smoke))
    monkeypatch.setitem(os.environ, "VAR_SCALING_SWEEP", "smoke")
    notebook = nbformat.read(path, 4)
    NotebookClient(notebook, timeout=120, resources={"metadata": {"path": FOLDER}}).execute()
    kinds = {
        kind
        for cell in notebook.cells
        for output in cell.get("outputs", [])
        for kind in output.get("data", {})
    }
    assert {"text/html", "image/png"} <= kinds
