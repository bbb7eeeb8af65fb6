"""Small trees of files as people have them: names, formats, encodings, compressions, schemas and damages at random.

Every row has an id that is nowhere else in the tree, so where it went can be told.
"""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import lzma
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import zstandard
from hypothesis import strategies as st
from pyarrow import feather, orc

PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": zstandard.ZstdCompressor().compress,
    ".lz4": lambda data: pa.Codec("lz4").compress(data, asbytes=True),
}
DATA = ("jsonl", "json-array", "json-pretty", "csv", "tsv", "parquet", "arrow", "arrow-stream", "orc")
SUFFIXES = {"json-array": "json", "json-pretty": "json", "arrow-stream": "arrow"}
DOCUMENTS = ("txt", "md", "html")
JUNK = ("bin", "zip", "pdf", "", "crc", "log")
PACKABLE = ("jsonl", "json-array", "json-pretty", "csv", "tsv", "txt", "md")
LINES = ("jsonl", "csv", "tsv")

FOLDERS = st.sampled_from(
    ["", "a b", "_posts", ".hidden", "ü%20", "year=2020/lang=en", "x#y?", "qrels", "_temporary", "d[1]"]
)
STEMS = st.sampled_from(
    ["a", "part-00000", "ä ö", "_index", ".dot", "_SUCCESS", "corpus", "queries", "it's", "100%", "m\udcf6wen", "x\ny"]
)
TEXTS = st.one_of(
    st.text(alphabet=st.characters(exclude_categories=("Cs", "Cc")), min_size=1, max_size=20),
    st.sampled_from(
        ["plain words here", 'a "quoted" word', "tab\there", "line\nend", "comma, semi; bar |", "möwe 鷗", "  "]
    ),
)
ODD_TEXTS = st.one_of(
    st.none(), st.just(""), st.integers(-5, 5), st.booleans(), st.lists(st.integers(0, 3), max_size=2)
)
VALUES = st.one_of(
    st.none(), st.integers(-9, 9), st.floats(-9, 9), st.booleans(), st.text(max_size=5),
    st.lists(st.text(max_size=3), max_size=2), st.dictionaries(st.sampled_from("ab"), st.integers(0, 2), max_size=2),
)  # fmt: skip


@dataclass(frozen=True)
class TreeFile:
    """One file: its place below the folder, its bytes, and what is in it."""

    place: str
    content: bytes
    format: str
    ids: tuple[str, ...]
    damage: str
    packed: bool

    @property
    def is_exact(self) -> bool:
        """Whether every row of it must come out, good or bad."""
        return self.damage == "none"


def _rows(draw: st.DrawFn, number: int, odd: bool) -> list[dict[str, Any]]:
    texts = st.one_of(TEXTS, ODD_TEXTS) if odd else TEXTS
    rows = [{"id": f"row-{number}-{i}", "text": draw(texts)} for i in range(draw(st.integers(0, 6)))]
    if draw(st.booleans()):
        for row in rows:
            row["meta"] = draw(VALUES)
    return rows


def _csv(rows: list[dict[str, Any]], delimiter: str) -> str:
    out = io.StringIO()
    writer = csv.writer(out, delimiter=delimiter, lineterminator="\n")
    names = list(rows[0]) if rows else ["id", "text"]
    writer.writerow(names)
    writer.writerows([["" if row[n] is None else row[n] for n in names] for row in rows])
    return out.getvalue()


def _columns(rows: list[dict[str, Any]]) -> pa.Table:
    """Columns of one type each, texts where they have none in common."""
    names = list(rows[0]) if rows else ["id", "text"]
    arrays = {}
    for name in names:
        values = [row[name] for row in rows]
        try:
            arrays[name] = pa.array(values)
        except (pa.ArrowException, TypeError):
            arrays[name] = pa.array([None if v is None else str(v) for v in values], pa.string())
        if pa.types.is_null(arrays[name].type) or arrays[name].type == pa.struct([]):
            arrays[name] = pa.array([None if v is None else str(v) for v in values], pa.string())
    return pa.table(arrays)


def _encoded(rows: list[dict[str, Any]], format_: str, encoding: str) -> bytes:
    if format_ in ("parquet", "arrow", "arrow-stream", "orc"):
        return _binary(_columns(rows), format_)
    if format_ == "jsonl":
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    elif format_ == "json-array":
        text = json.dumps(rows, ensure_ascii=False)
    elif format_ == "json-pretty":
        text = "\n".join(json.dumps(row, ensure_ascii=False, indent=1) for row in rows)
    elif format_ in ("csv", "tsv"):
        text = _csv(rows, "," if format_ == "csv" else "\t")
    elif format_ == "html":
        text = f"<h1>{rows[0]['id']}</h1>" if rows else ""
    else:
        text = f"# {rows[0]['id']}\n" if rows else ""
    return text.encode(encoding)


def _binary(table: pa.Table, format_: str) -> bytes:
    out = io.BytesIO()
    if format_ == "parquet":
        pq.write_table(table, out, row_group_size=2)
    elif format_ == "orc":
        orc.write_table(_without_lists(table), out)
    elif format_ == "arrow":
        feather.write_feather(table, out)
    else:
        with pa.ipc.new_stream(out, table.schema) as writer:
            writer.write_table(table)
    return out.getvalue()


def _without_lists(table: pa.Table) -> pa.Table:
    kept = [f.name for f in table.schema if not pa.types.is_nested(f.type)]
    return table.select(kept)


def _damaged(draw: st.DrawFn, content: bytes, damage: str) -> bytes:
    at = draw(st.integers(0, max(0, len(content) - 1)))
    if damage == "truncated":
        return content[:at]
    if damage == "flipped" and content:
        return content[:at] + bytes([content[at] ^ (1 << draw(st.integers(0, 7)))]) + content[at + 1 :]
    if damage == "padded":
        return content + bytes(draw(st.integers(1, 600)))
    return content + b"\xff\xfegarbage" if damage == "garbage" else content


@st.composite
def trees(draw: st.DrawFn) -> list[TreeFile]:
    """Draws the files of one folder; most have one data format, so that it can be told."""
    main = draw(st.sampled_from([*DATA, *DOCUMENTS]))
    others = st.sampled_from([*DATA, *DOCUMENTS, *JUNK])
    formats = [
        main,
        *draw(st.lists(st.one_of(st.just(main), st.sampled_from([*DOCUMENTS, *JUNK]), others), max_size=5)),
    ]
    encoding = draw(st.sampled_from(["utf-8", "utf-8", "utf-8-sig", "utf-16"]))
    files: dict[str, TreeFile] = {}
    for number, format_ in enumerate(formats):
        file = _file(draw, number, format_, encoding)
        files.setdefault(file.place, file)
    return list(files.values())


def _file(draw: st.DrawFn, number: int, format_: str, encoding: str) -> TreeFile:
    rows = _rows(draw, number, odd=draw(st.integers(0, 3)) == 0)
    if format_ in DOCUMENTS:
        rows = rows[:1]
    damage = draw(st.sampled_from(["none"] * 4 + ["truncated", "flipped", "padded", "garbage"]))
    suffix = draw(st.sampled_from(list(PACKERS))) if format_ in PACKABLE else ""
    if format_ in JUNK:
        content, rows = draw(st.binary(max_size=20)), []
    else:
        content = PACKERS[suffix](_encoded(rows, format_, encoding))
    content = _damaged(draw, content, damage)
    stem, folder = draw(STEMS), draw(FOLDERS)
    name = f"{stem}-{number}" if draw(st.booleans()) else stem
    ending = f".{SUFFIXES.get(format_, format_)}" if format_ else ""
    place = f"{folder}/{name}{ending}{suffix}".lstrip("/")
    return TreeFile(place, content, format_, tuple(row["id"] for row in rows), damage, bool(suffix))


def write_tree(root: Path, files: list[TreeFile]) -> None:
    """Writes the files below a folder."""
    for file in files:
        path = os.fsencode(root) + b"/" + file.place.encode("utf-8", "surrogateescape")
        os.makedirs(os.path.dirname(path), exist_ok=True)  # noqa: PTH103, PTH120  # bytes
        with open(path, "wb") as out:  # noqa: PTH123
            out.write(file.content)
