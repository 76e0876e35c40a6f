"""The notebooks run from the first cell to the last."""

import os
import re
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


@pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda f: f.name)
def test_a_notebook_draws_in_the_colours_of_the_pages(file: Path):
    page = Path(__file__).parents[1] / "surgeon" / "report" / "page.css"
    colours = re.findall(r"#[0-9a-fA-F]{6}\b", file.read_text(encoding="utf-8"))
    assert colours and set(colours) <= set(re.findall(r"#[0-9a-f]{6}\b", page.read_text()))
