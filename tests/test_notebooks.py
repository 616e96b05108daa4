"""Notebooks have few cells, no `def` and no outputs, and run on the results of `smoke`; that of
families runs on synthetic tables.
"""

import os
from pathlib import Path

import matplotlib.pyplot as plt
import nbformat
import numpy as np
import pytest
from conftest import tokenizer, trial
from nbclient import NotebookClient
from small_home import small_home
from test_compare_families import scored

from var_scaling.data import order
from var_scaling.pyramid import Pyramid

FOLDER = Path(__file__).parent.parent / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_define_no_functions_and_have_no_outputs(path):
    cells = [cell for cell in nbformat.read(path, 4).cells if cell.cell_type == "code"]
    assert len(cells) <= 12
    assert not [cell.source for cell in cells if "def " in cell.source]
    assert not [cell.outputs for cell in cells if cell.outputs]


PUBLISHED = FOLDER.parents[1] / "shared" / "data" / "laws"
# The notebook of published laws does not read `smoke`.
OTHER = [
    pytest.mark.thorough,
    pytest.mark.skipif(not PUBLISHED.exists(), reason=f"no published tables at {PUBLISHED}"),
]
RUNS = [
    pytest.param(path, marks=OTHER if path.stem == "published_laws" else []) for path in NOTEBOOKS
]


@pytest.mark.parametrize("path", RUNS, ids=lambda path: path.stem)
def test_a_notebook_runs_on_the_smoke_results(path, smoke, monkeypatch, tmp_path):
    scored().to_parquet(tmp_path / "images.parquet")
    monkeypatch.setitem(os.environ, "VAR_SCALING_IMAGES", str(tmp_path / "images.parquet"))
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


def test_the_samples_notebook_works_for_one_scale_without_class_dropout(tmp_path, monkeypatch):
    """No guidance, no finer scales to edit; and the reference rows are spread evenly."""
    t = tokenizer(pyramid=Pyramid(patch_nums=(4,)))
    home = small_home(tmp_path / "home", trial(tokenizer=t, class_dropout_prob=0))
    monkeypatch.setenv("VAR_SCALING_HOME", str(home.root))
    monkeypatch.setenv("VAR_SCALING_SWEEP", "grid")
    monkeypatch.chdir(FOLDER)
    spread = []
    monkeypatch.setattr(
        order, "spread_rows", lambda *given: spread.append(given) or np.arange(0, 100, 3)
    )
    plt.switch_backend("agg")
    seen: dict = {}
    for cell in nbformat.read(FOLDER / "samples_and_editing.ipynb", 4).cells:
        if cell.cell_type == "code":
            exec(cell.source.removeprefix("%matplotlib inline\n"), seen)
    plt.close("all")
    assert list(seen["guided"]) == ["guidance 0.0"]
    assert list(seen["labels"]) == ["with its class"]
    assert "small" not in seen
    assert spread == [(100, 1024)]
    assert seen["table"].real_images.tolist() == [34]
