"""The notebook is stored with its outputs, and runs from top to bottom. The test runs it on less data."""

import os
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

SLICE, SMALLER_SLICE = "limit=1000, batch_size=100", "limit=100, batch_size=10"
ROOT = Path(__file__).parents[1]
NAMED_DATA = os.environ.get("ONECYCLE_DATA")


def test_it_is_committed_with_its_outputs_and_without_an_error() -> None:
    notebook = nbformat.read(ROOT / "S10.ipynb", as_version=4)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(cell.execution_count for cell in cells)
    assert not any(output.output_type == "error" for cell in cells for output in cell.outputs)
    plots = [output for cell in cells for output in cell.outputs if "image/png" in output.get("data", {})]
    assert len(plots) >= 9


@pytest.mark.filterwarnings("default")  # warnings of Jupyter itself must not fail the test
def test_it_runs_from_top_to_bottom(monkeypatch: pytest.MonkeyPatch) -> None:
    if NAMED_DATA:  # without a data folder, the notebook uses the embedded digits
        monkeypatch.setenv("ONECYCLE_DATA", NAMED_DATA)
    notebook = nbformat.read(ROOT / "S10.ipynb", as_version=4)
    first = next(cell for cell in notebook.cells if cell.cell_type == "code")
    assert SLICE in first.source
    first.source = first.source.replace(SLICE, SMALLER_SLICE)
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(ROOT)}}).execute()
