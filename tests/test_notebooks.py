"""The example notebooks run offline from top to bottom, and print what they are committed with."""

import re
import sys
from pathlib import Path
from typing import Any

import nbformat
import pytest
from doc_pages import REPO

sys.path.insert(0, str(REPO / "docs" / "site"))

from run_notebooks import run_notebook

NOTEBOOKS = sorted((REPO / "examples").glob("*.ipynb"))
SLOW = ("score_a_search", "train_a_small_model")


def printed(book: Any) -> str:
    """What a notebook prints, without the numbers: the last digits differ from machine to machine."""
    texts = [output["text"] for cell in book.cells for output in cell.get("outputs", []) if "text" in output]
    return re.sub(r"[+-]?\d+(?:\.\d+)?", "0", "\n".join(texts))


def pictures(book: Any) -> int:
    return sum("image/png" in output.get("data", {}) for cell in book.cells for output in cell.get("outputs", []))


@pytest.mark.parametrize(
    "notebook",
    [pytest.param(path, marks=pytest.mark.slow) if path.stem in SLOW else path for path in NOTEBOOKS],
    ids=[path.stem for path in NOTEBOOKS],
)
def test_notebook_runs_and_prints_what_it_is_committed_with(notebook: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.delenv("PEG_RAG_MODEL", raising=False)
    committed = nbformat.read(notebook, as_version=4)
    result = run_notebook(notebook)
    assert printed(result) == printed(committed), "run `make notebooks` and look at the difference"
    assert pictures(result) == pictures(committed)


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_is_committed_with_its_results(notebook: Path) -> None:
    book = nbformat.read(notebook, as_version=4)
    nbformat.validate(book)
    cells = [cell for cell in book.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert pictures(book) >= 1
    assert notebook.stat().st_size < 200_000


def test_each_notebook_is_listed() -> None:
    readme = (REPO / "examples" / "README.md").read_text(encoding="utf-8")
    assert [path.name for path in NOTEBOOKS if f"]({path.name})" not in readme] == []
