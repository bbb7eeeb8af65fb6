"""Runs notebooks from top to bottom and stores them with their outputs, without the paths of this machine.

python notebooks/execute.py notebooks/*.ipynb        # one after the other: each starts a Ray of its own
"""

from __future__ import annotations

import re
import sys
import tempfile
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient

FOLDER = Path(__file__).resolve().parent
MACHINE = re.compile(
    rf"(?:file://)?(?:{re.escape(tempfile.gettempdir())}/tridex-\w+|{re.escape(str(FOLDER))}|{re.escape(sys.prefix)})"
)
"""The folder that a notebook makes for its data, this one, and the environment."""


def execute(path: Path) -> None:
    """Runs every cell in a fresh kernel and stores the outputs in the file; raises CellExecutionError for an error."""
    notebook = nbformat.read(path, as_version=4)
    metadata = dict(notebook.metadata)
    client = NotebookClient(
        notebook,
        timeout=600,
        kernel_name="python3",
        record_timing=False,
        resources={"metadata": {"path": str(path.parent)}},
    )
    client.execute()
    notebook.metadata = nbformat.from_dict(metadata)  # without the version of the Python that ran it
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [without_paths(output) for output in cell.outputs if output.get("name") != "stderr"]
    nbformat.write(notebook, path)


def without_paths(value: Any) -> Any:
    """Replaces folders of this machine by `.` in every text of an output."""
    if isinstance(value, str):
        return MACHINE.sub(".", value)
    if isinstance(value, list):
        return [without_paths(item) for item in value]
    if isinstance(value, dict):
        return nbformat.from_dict({key: without_paths(item) for key, item in value.items()})
    return value


if __name__ == "__main__":
    for name in sys.argv[1:]:
        execute(Path(name).resolve())
        print(name)
