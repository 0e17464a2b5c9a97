"""Every notebook runs from top to bottom in a real kernel, and is committed without output."""

import os
import pathlib

import pytest

from rath import backend

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")

NOTEBOOKS = sorted((pathlib.Path(__file__).parents[2] / "notebooks").glob("*.ipynb"))
NEED_A_SANDBOX = {"04_sandboxed_coding_agent"}


def test_there_are_notebooks():
    assert NOTEBOOKS


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_a_notebook_has_no_stored_output(path):
    for cell in nbformat.read(path, as_version=4).cells:
        assert not cell.get("outputs")
        assert cell.get("execution_count") is None


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_a_notebook_runs_in_a_real_kernel(path, tmp_path, monkeypatch):
    if path.stem in NEED_A_SANDBOX and not backend.is_available("auto") and not os.environ.get("RATH_REQUIRE_DOCKER"):
        pytest.skip("no sandbox that isolates works here")
    monkeypatch.setenv("OPENRATH_HOME", str(tmp_path / ".openrath"))
    monkeypatch.setenv("RATH_SANDBOX_IMAGE", "rath-test:dev")
    notebook = nbformat.read(path, as_version=4)
    nbclient.NotebookClient(notebook, timeout=120, kernel_name="python3", resources={"metadata": {"path": tmp_path}}).execute()
    shown = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    assert any("text/html" in output.get("data", {}) for output in shown)
