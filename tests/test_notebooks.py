"""Every notebook runs from its first cell to its last, and is stored with what that printed."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOKS = sorted((Path(__file__).resolve().parent.parent / "notebooks").glob("*.ipynb"))
MACHINE = re.compile(r"(?:file://|(?<![\w.:/<]))/(?:tmp|home|root|work|Users|private|var|opt|usr|mnt|data)/")
"""An absolute path."""
TIMING = re.compile(r"\d(?:\.\d+)? ?(?:s|ms|min|h)\b|rows/s|tokens/s|docs/s")
"""What differs at every run."""


def code_cells(path: Path) -> list[Any]:
    return [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]


def kinds(cell: Any) -> list[list[str]]:
    """MIME types, or the stream, of each output; warnings come and go."""
    shown = [output for output in cell.get("outputs", []) if output.get("name") != "stderr"]
    return [sorted(output.get("data", {output.get("name"): ""})) for output in shown]


def texts(cell: Any) -> list[str]:
    """What a reader sees: text and HTML, the values of pictures left out."""
    found = []
    for output in cell.outputs:
        found.append(output.get("text", ""))
        found += [v for mime, v in output.get("data", {}).items() if mime.startswith("text/")]
    return [re.sub(r"base64,[\w+/=]+", "", text) for text in found]


@pytest.mark.ray
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs(path: Path) -> None:
    stored = [kinds(cell) for cell in code_cells(path)]
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(
        notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(path.parent)}}
    ).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert any("text/html" in output.get("data", {}) for output in outputs)
    assert [kinds(cell) for cell in notebook.cells if cell.cell_type == "code"] == stored


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_is_stored_with_its_outputs(path: Path) -> None:
    cells = code_cells(path)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert [i for i, cell in enumerate(cells) if not cell.outputs] == []
    assert [i for i, cell in enumerate(cells) if any(o.output_type == "error" for o in cell.outputs)] == []
    assert [i for i, cell in enumerate(cells) if any(o.get("name") == "stderr" for o in cell.outputs)] == []


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_stored_outputs_name_no_machine_and_no_times(path: Path) -> None:
    shown = [text for cell in code_cells(path) for text in texts(cell)]
    assert [found[0] for text in shown for found in MACHINE.finditer(text)] == []
    assert [found[0] for text in shown for found in TIMING.finditer(re.sub(r"<[^>]*>", " ", text))] == []


def test_the_patterns_find_what_they_are_for() -> None:
    assert MACHINE.search("title='/tmp/tridex-ab12/corpus/part-0.parquet'")
    assert MACHINE.search("saved in /home/me/x")
    assert MACHINE.search("file:///data/x")
    assert not MACHINE.search("./corpus/part-0.parquet, https://x.org/home/a and </div>")
    assert TIMING.search("time        1.3 s, of it embedding")
    assert not TIMING.search("5 hits, 7 documents")
