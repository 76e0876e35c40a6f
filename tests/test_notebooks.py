"""The notebooks run from the first cell to the last."""

import os
from pathlib import Path

import pytest

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
@pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda f: f.name)
def test_a_notebook_runs_and_draws_its_figures(file: Path, monkeypatch: pytest.MonkeyPatch):
    import nbformat
    from nbclient import NotebookClient

    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    notebook = nbformat.read(file, as_version=4)
    NotebookClient(
        notebook, timeout=300, kernel_name="python3", cwd=os.fspath(file.parent)
    ).execute()
    outputs = [o for cell in notebook.cells for o in cell.get("outputs", [])]
    pictures = sum("image/png" in o.get("data", {}) for o in outputs)
    assert pictures == sum("plt.show()" in cell.source for cell in notebook.cells) > 0
