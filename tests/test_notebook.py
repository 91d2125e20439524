"""The notebook runs from top to bottom."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).parents[1] / "docs" / "first_steps.ipynb"


@pytest.mark.ci
def test_the_notebook_runs():
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    NotebookClient(notebook, timeout=300, kernel_name="python3").execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    assert (
        sum("image/png" in output.get("data", {}) for output in outputs) == 3
    )  # the result draws itself, and two figures
    assert "'offset': (1, 2, 32, 64)" in outputs[-1].data["text/plain"]
