"""HTML, PDF, Office and EPUB files: one document each, its headings and pages known to its chunks."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from actors.spec import Window
from pipelines.config import Columns, ConfigError, InputConfig
from pipelines.reading.chunk import chunk_table
from pipelines.reading.outline import Outline
from pipelines.reading.units import metadata_fields, plan_input, plan_units, read_unit
from tests import documents

pytest.importorskip("markitdown", reason="the extra `documents` is not installed")

FILES = {
    "a.html": documents.HTML,
    "b.pdf": documents.pdf(["Page one of herons.", "Page two of otters."]),
    "c.docx": documents.docx(("Heading1", "Herons"), ("", "They stand in water.")),
    "d.pptx": documents.pptx([("First", "Slide of herons."), ("Second", "Slide of otters.")]),
    "e.xlsx": documents.xlsx(Birds=[["name", "legs"], ["heron", 2]]),
    "f.epub": documents.epub("A book", "<h1>One</h1><p>Herons.</p>", "<h1>Two</h1><p>Otters.</p>"),
}


class Words:
    def counts(self, texts: list[str]) -> np.ndarray:
        return np.array([len(text.split()) for text in texts], np.int64)

    def offsets(self, text: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        spans = np.array([m.span() for m in re.finditer(r"\S+", text)], dtype=np.int64).reshape(-1, 2)
        return np.arange(len(spans)), spans[:, 0], spans[:, 1]


def _read(folder: Path, **options: Any) -> pa.Table:
    config = InputConfig(paths=(str(folder),), **options)
    units = plan_units(config)
    fields = metadata_fields(config, units)
    return pa.concat_tables([table for unit in units for table in read_unit(unit, config, 2, fields)])


def _write(folder: Path, files: dict[str, bytes]) -> None:
    for name, content in files.items():
        (folder / name).write_bytes(content)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("a.html", ["# Herons", "They stand in water.", "## Food"]),
        ("b.pdf", ["Page one of herons.", "Page two of otters."]),
        ("c.docx", ["# Herons", "They stand in water."]),
        ("d.pptx", ["# First", "Slide of otters."]),
        ("e.xlsx", ["## Birds", "heron"]),
        ("f.epub", ["# One", "Otters."]),
    ],
)
def test_each_format_is_markdown_with_its_headings(tmp_path: Path, name: str, words: list[str]) -> None:
    _write(tmp_path, {name: FILES[name]})
    (row,) = _read(tmp_path).to_pylist()
    assert (row["doc_id"], row["error"]) == (f"{tmp_path.name}/{name}", None)
    assert all(word in row["text"] for word in words)
    assert "hidden" not in row["text"]


def test_documents_and_text_are_read_together(tmp_path: Path) -> None:
    _write(tmp_path, {**FILES, "g.md": b"# Notes\n\nMore.", "h.bin": b""})
    table = _read(tmp_path)
    assert len(table) == 7
    assert table["error"].null_count == 7
    assert [s.kind for s in plan_input(InputConfig(paths=(str(tmp_path),))).skipped] == [".bin"]


@pytest.mark.parametrize("name", ["a.pdf", "a.docx", "a.pptx", "a.xlsx", "a.epub"])
@pytest.mark.parametrize("content", [b"", b"not what it says", b"%PDF-1.4\n%%EOF\n", b"PK\x03\x04" + b"\0" * 50])
def test_a_bad_file_is_one_bad_row(tmp_path: Path, name: str, content: bytes) -> None:
    _write(tmp_path, {name: content, "good.html": documents.HTML})
    rows = {row["doc_id"].rpartition("/")[2]: row["error"] for row in _read(tmp_path).to_pylist()}
    assert rows["good.html"] is None
    assert rows[name] is not None
    assert "\n" not in rows[name]


def test_chunks_know_their_heading_and_page(tmp_path: Path) -> None:
    long = " ".join(["word"] * 30)
    _write(
        tmp_path,
        {
            "a.html": f"<h1>Birds</h1><p>{long}</p><h2>Herons</h2><p>{long}</p>".encode(),
            "b.pdf": documents.pdf([f"One {long}", f"Two {long}", f"Three {long}"]),
            "d.pptx": FILES["d.pptx"],
        },
    )
    table = chunk_table(_read(tmp_path), Words(), Window(34, 0, "sentences"))
    found = [(row["doc_id"].rpartition("/")[2], row["heading"], row["page"]) for row in table.to_pylist()]
    assert found == [
        ("a.html", "Birds", None),
        ("a.html", "Birds > Herons", None),
        ("b.pdf", None, 1),
        ("b.pdf", None, 2),
        ("b.pdf", None, 3),
        ("d.pptx", "First", 1),
    ]


def test_pages_of_a_pdf_with_a_table_and_sheets_of_a_workbook(tmp_path: Path) -> None:
    rows = "\n".join(f"bird {i}|place {i}|{i} seen" for i in range(8))
    long = " ".join(["word"] * 30)
    _write(
        tmp_path,
        {
            "a.pdf": documents.pdf([f"One {long}", rows, f"Three {long}"]),
            "b.xlsx": documents.xlsx(
                Birds=[["name"], *[[f"heron {i}"] for i in range(20)]],
                Fish=[["name"], *[[f"carp {i}"] for i in range(20)]],
            ),
        },
    )
    table = chunk_table(_read(tmp_path), Words(), Window(34, 0, "sentences"))
    found = [(row["doc_id"].rpartition("/")[2], row["heading"], row["page"]) for row in table.to_pylist()]
    pages = [page for name, _, page in found if name == "a.pdf"]
    assert pages == sorted(pages)
    assert set(pages) == {1, 2, 3}
    assert {heading for name, heading, _ in found if name == "b.xlsx"} == {"Birds", "Fish"}
    first, second, third = _read(tmp_path)["text"].to_pylist()[0].split("\f")
    assert ("One" in first, "place 7" in second, "Three" in third) == (True, True, True)


def test_an_outline() -> None:
    outline = Outline.of("Before.\n\n# A\n\ntext\n\n## B #\n\ntext\n\n# C\ntext")
    text = outline.text
    assert outline.place(0) == {"heading": None, "page": None}
    assert outline.place(text.index("\n\n## B"))["heading"] == "A > B"
    assert outline.place(text.rindex("text"))["heading"] == "C"


def test_a_column_called_heading_of_ones_own_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"id": "a", "text": "# Not this\\n\\nx", "heading": "mine"}\n')
    table = chunk_table(_read(tmp_path, columns=Columns(metadata=("heading",))), Words(), None)
    assert table["heading"].to_pylist() == ["mine"]


def test_markdown_may_have_the_columns_too(tmp_path: Path) -> None:
    (tmp_path / "a.md").write_text("# Birds\n\nHerons.")
    table = chunk_table(_read(tmp_path, columns=Columns(metadata=("heading", "page"))), Words(), None)
    assert (table["heading"].to_pylist(), table["page"].to_pylist()) == (["Birds"], [None])


def test_without_the_extra_they_are_skipped_with_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "markitdown", None)
    _write(tmp_path, {"a.html": documents.HTML, "b.md": b"# Text"})
    plan = plan_input(InputConfig(paths=(str(tmp_path),)))
    assert [unit.format for unit in plan.units] == ["text"]
    assert "needs markitdown" in plan.skipped[0].reason
    for paths in ((str(tmp_path / "a.html"),), (str(tmp_path / "*.html"),)):
        with pytest.raises(ConfigError, match=r"needs markitdown: pip install 'tridex\[documents\]'"):
            plan_input(InputConfig(paths=paths))


def test_a_duplicate_in_the_same_block_does_not_take_the_headings_away(tmp_path: Path) -> None:
    _write(tmp_path, {"a.html": documents.HTML})
    good = _read(tmp_path)
    twice = good.set_column(good.column_names.index("text"), "text", pa.array([None], pa.string()))
    table = chunk_table(pa.concat_tables([good, twice]), Words(), None)
    assert table["heading"].to_pylist() == ["Herons", None]
