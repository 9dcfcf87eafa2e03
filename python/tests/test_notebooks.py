"""The notebooks run from beginning to end, and show what they are committed with."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import nbclient
import nbformat
import pytest

FOLDER = Path(__file__).parents[2] / "notebooks"
NAMES = ["clip_notebook", "clip_mixup", "clip_triplet_loss", "clip_vpt"]


def shown(notebook: Any) -> list[tuple[str, list[str]]]:
    """The kinds of results that each cell shows, with its id. What is printed may come in any number of pieces."""
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    return [
        (cell.id, [kind for output in cell.outputs for kind in sorted(output.get("data", {}))]) for cell in cells
    ]


@pytest.fixture(scope="module")
def executed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("notebooks")

    def execute(name: str) -> Any:
        notebook = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
        for cell in notebook.cells:
            if cell.cell_type == "code":
                cell.outputs, cell.execution_count = [], None
        resources = {"metadata": {"path": str(folder)}}
        return nbclient.NotebookClient(notebook, timeout=600, resources=resources).execute()

    with pytest.MonkeyPatch.context() as patch, ThreadPoolExecutor(2) as pool:
        # As few as have curves.
        patch.setenv("CLIP_ENGINE_EPOCHS", "2")
        return dict(zip(NAMES, pool.map(execute, NAMES)))


def test_all_notebooks_are_tested() -> None:
    assert sorted(path.stem for path in FOLDER.glob("*.ipynb")) == sorted(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_shows_what_it_is_committed_with(name: str, executed: dict[str, Any]) -> None:
    committed = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
    nbformat.validate(committed)
    assert shown(executed[name]) == shown(committed)
    assert any("image/png" in kinds for _, kinds in shown(committed))
    assert any("image/svg+xml" in kinds for _, kinds in shown(committed))
