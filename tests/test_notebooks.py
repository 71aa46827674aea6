"""The notebooks run from top to bottom, without a network, and show what their text says."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import nbformat
import pandas as pd
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


@pytest.fixture
def clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("Snakefile", "workflow", "profiles", "config", "notebooks", "environment.yml"):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, tmp_path / name)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / ".ipython"))
    return tmp_path


def executed(path: Path) -> list[str]:
    """What each code cell prints or shows as text, in order."""
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=1800, resources={"metadata": {"path": str(path.parent)}}).execute()
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    return [
        "".join(o.get("text", "") or o.get("data", {}).get("text/plain", "") for o in c.outputs)
        for c in cells
    ]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_are_committed_without_outputs(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in notebook.cells)


@pytest.mark.slow
def test_segment_your_own_picture(clone: Path) -> None:
    shown = executed(clone / "notebooks/segment_your_own_picture.ipynb")
    [result] = [text[text.index("Segmentation(") :] for text in shown if "Segmentation(" in text]
    assert (
        result.startswith("Segmentation(96 x 96 pixels: grass ") and "bear" in result and "guitar" in result
    )
    assert any("['animal', 'plant'] -> " in text for text in shown)


@pytest.mark.slow
def test_from_configuration_to_ablation_plot(clone: Path) -> None:
    shown = executed(clone / "notebooks/from_configuration_to_ablation_plot.ipynb")
    assert any("unknown value 'gsp'" in text for text in shown)
    accuracy = pd.read_csv(clone / "results/depth.csv", index_col="method")["es171.pAcc"]
    assert list(accuracy.index) == ["No layer", "The last", "The last two", "The last three"]
    assert accuracy["The last three"] > 2 * accuracy["No layer"]
