"""Run the example notebooks and keep what they print and draw: `python docs/site/run_notebooks.py`.

A notebook is read with its results far more often than it is run, so the results are committed; the tests run the
same cells again and compare what they print.
"""

import sys
import tempfile
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def run_notebook(file: Path, *, timeout_s: int = 300) -> Any:
    """The notebook with fresh results, run in an empty folder; warnings on stderr are left out.

    Raises:
        nbclient.exceptions.CellExecutionError: a cell failed.
    """
    book: Any = nbformat.read(file, as_version=4)
    with tempfile.TemporaryDirectory() as folder:
        client = NotebookClient(
            book,
            timeout=timeout_s,
            resources={"metadata": {"path": folder}},
            record_timing=False,
            coalesce_streams=True,
        )
        client.execute()
    for cell in book.cells:
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
    book.metadata["language_info"] = {"name": "python"}
    return book


if __name__ == "__main__":
    for notebook in [Path(name) for name in sys.argv[1:]] or sorted(EXAMPLES.glob("*.ipynb")):
        nbformat.write(run_notebook(notebook), notebook)
        print(notebook)
