"""Small trees of files as people have them: names, formats, encodings, compressions, schemas and damages at random.

Every row has an id that is nowhere else in the tree, unless it repeats another row on purpose.
"""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import lzma
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import zstandard
from hypothesis import strategies as st
from pyarrow import feather, orc

from pipelines.config import is_utf8
from tests.fuzz.values import ARROW_COLUMNS, FLAT_COLUMNS, JSON_VALUES, ODD_TEXTS, TEXT_TYPES, TEXTS, is_plain_text

PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": zstandard.ZstdCompressor().compress,
    ".lz4": lambda data: pa.Codec("lz4").compress(data, asbytes=True),
}
LINES = ("jsonl", "csv", "tsv")
BINARY = ("parquet", "arrow", "arrow-stream", "orc")
DATA = (*LINES, "json-array", "json-pretty", *BINARY)
SUFFIXES = {"json-array": "json", "json-pretty": "json", "arrow-stream": "arrow"}
DOCUMENTS = ("txt", "md", "html")
JUNK = ("bin", "zip", "pdf", "", "crc", "log")
PACKABLE = (*LINES, "json-array", "json-pretty", "txt", "md")
ENCODINGS = ("utf-8", "utf-8", "utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32")
DAMAGES = ("truncated", "flipped", "padded", "garbage", "cut-member")

FOLDERS = st.sampled_from(
    [
        "", "a b", "_posts", ".hidden", "ü%20", "year=2020/lang=en", "year=x/lang=__HIVE_DEFAULT_PARTITION__",
        "lang=a%20b", "year=", "x#y?", "qrels", "_temporary", "d[1]", "a/b/c", "~", "$HOME", "-x", "e\u0301",
    ]
)  # fmt: skip
STEMS = st.sampled_from(
    [
        "a", "part-00000", "ä ö", "_index", ".dot", "_SUCCESS", "corpus", "queries", "it's", "100%", "m\udcf6wen",
        "x\ny", "user@host", "a:b", "A", "dataset_info", "a.b", " ",
    ]
)  # fmt: skip
ID_NAMES = ("id", "id", "id", "_id", "doc_id", None)
COLUMN_NAMES = ("meta", "meta", "meta", "year", "lang", "heading", "page", "score", "title", "Größe", "kind of")
ODD_COLUMN_NAMES = ("a.b", "a`b", "", " ", "_rowid", "_score", "text", "source", "error", "a\nb", "\ud800")


@dataclass(frozen=True)
class TreeFile:
    """One file: its place below the folder, its bytes, and what is in it."""

    place: str
    content: bytes
    format: str
    rows: tuple[Mapping[str, Any], ...]
    damage: str
    packed: bool

    @property
    def is_exact(self) -> bool:
        """Whether every row of it must come out, good or bad."""
        return self.damage == "none"


@dataclass(frozen=True)
class Tree:
    """Files, links (place and target, relative to the folder), and what a config says of them."""

    files: tuple[TreeFile, ...]
    links: tuple[tuple[str, str], ...]
    format: str
    """The reader of most files."""
    id: str | None
    metadata: Mapping[str, str]
    """Name in the index to the column of the files."""


@dataclass(frozen=True)
class _Style:
    """What all files of a tree have in common."""

    encoding: str
    id: str | None
    columns: tuple[str, ...]
    odd: bool

    @property
    def names(self) -> list[str]:
        """Columns of a file."""
        return list(dict.fromkeys([*([self.id] if self.id else []), "text", *self.columns]))


def _rows(draw: st.DrawFn, number: int, style: _Style) -> list[dict[str, Any]]:
    texts = st.one_of(TEXTS, ODD_TEXTS) if style.odd and draw(st.booleans()) else TEXTS
    rows: list[dict[str, Any]] = []
    for i in range(draw(st.integers(0, 6))):
        row: dict[str, Any] = {} if style.id is None else {style.id: f"row-{number}-{i}"}
        rows.append({**row, "text": draw(texts)})
    if style.odd and style.id and rows and draw(st.booleans()):
        rows[-1][style.id] = draw(
            st.sampled_from([None, "", "  ", 7, 2**70, 1.5, True, [1], rows[0][style.id], "row-0-0"])
        )
    if rows and draw(st.integers(0, 9)) == 0:
        rows.append(dict(rows[0]))
    return rows


def _add_columns(draw: st.DrawFn, rows: list[dict[str, Any]], style: _Style) -> None:
    """Adds values of any kind to each row."""
    for name in style.columns:
        for row in rows:
            row.setdefault(name, draw(JSON_VALUES))


def _lengthen(draw: st.DrawFn, rows: list[dict[str, Any]], style: _Style, number: int) -> list[dict[str, Any]]:
    """Puts more than a thousand equal rows before the drawn ones."""
    filler = {name: draw(JSON_VALUES) for name in style.columns}
    named = [{} if style.id is None else {style.id: f"filler-{number}-{i}"} for i in range(1001)]
    return [{**filler, **row, "text": f"filler {number} {i}"} for i, row in enumerate(named)] + rows


def _csv(rows: Sequence[Mapping[str, Any]], names: Sequence[str], delimiter: str) -> str:
    out = io.StringIO()
    writer = csv.writer(out, delimiter=delimiter, lineterminator="\n")
    writer.writerow(names)
    writer.writerows([["" if row.get(n) is None else row[n] for n in names] for row in rows])
    return out.getvalue()


def _columns(draw: st.DrawFn, rows: Sequence[Mapping[str, Any]], style: _Style, flat: bool) -> pa.Table:
    """Columns of one type each: of any type that Arrow has, texts where the drawn values have none in common."""
    names = style.names
    arrays = [_array(draw, name, [row.get(name) for row in rows], style, flat) for name in names]
    return pa.table(arrays, names=[name.encode("utf-8", "replace").decode() for name in names])


def _array(draw: st.DrawFn, name: str, values: list[Any], style: _Style, flat: bool) -> pa.Array:
    if name in style.columns and draw(st.booleans()):
        type_, choices = draw(st.sampled_from(FLAT_COLUMNS if flat else ARROW_COLUMNS))
        return pa.array([draw(st.sampled_from([*choices, None])) for _ in values], type_)
    if name == "text" and all(is_plain_text(v) for v in values):
        return pa.array(values, pa.string()).cast(draw(st.sampled_from(TEXT_TYPES[:1] if flat else TEXT_TYPES)))
    try:
        array = pa.array(values)
    except (pa.ArrowException, TypeError, UnicodeError, OverflowError):
        array = pa.null()
    if not isinstance(array, pa.Array) or array.type in (pa.null(), pa.struct([])):
        return pa.array([None if v is None else ascii(v) for v in values], pa.string())
    return array


def _encode(draw: st.DrawFn, rows: Sequence[Mapping[str, Any]], format_: str, style: _Style) -> bytes:
    if format_ in BINARY:
        return _write_binary(_columns(draw, rows, style, flat=format_ == "orc"), format_)
    as_ascii = draw(st.booleans()) or not is_utf8(json.dumps(rows, ensure_ascii=False))
    if format_ == "jsonl":
        ends = draw(st.sampled_from(["\n", "\n", "\r\n", "\n\n"]))
        text = "".join(json.dumps(row, ensure_ascii=as_ascii) + ends for row in rows)
    elif format_ == "json-array":
        text = json.dumps(rows, ensure_ascii=as_ascii)
    elif format_ == "json-pretty":
        text = "\n".join(json.dumps(row, ensure_ascii=as_ascii, indent=1) for row in rows)
    elif format_ in ("csv", "tsv"):
        text = _csv(rows, style.names, draw(st.sampled_from(",,;|")) if format_ == "csv" else "\t")
    else:
        text = f"{'<h1>' if format_ == 'html' else '# '}{rows[0]['text']!a}" if rows else ""
    return text.encode(style.encoding, "surrogatepass" if style.encoding == "utf-8" else "replace")


def _write_binary(table: pa.Table, format_: str) -> bytes:
    out = io.BytesIO()
    if format_ == "parquet":
        pq.write_table(table, out, row_group_size=2)
    elif format_ == "orc":
        orc.write_table(table.select([f.name for f in table.schema if not pa.types.is_nested(f.type)]), out)
    elif format_ == "arrow":
        feather.write_feather(table, out)
    else:
        with pa.ipc.new_stream(out, table.schema) as writer:
            writer.write_table(table)
    return out.getvalue()


def _pack(draw: st.DrawFn, content: bytes, suffix: str, damage: str) -> bytes:
    """Compresses in one member or two; of a `cut-member`, the second breaks off."""
    pack = PACKERS[suffix]
    if not suffix or (damage != "cut-member" and draw(st.booleans())):
        return pack(content)
    at = draw(st.integers(0, len(content)))
    last = pack(content[at:])
    return pack(content[:at]) + (last[: len(last) // 2] if damage == "cut-member" else last)


def _damage(draw: st.DrawFn, content: bytes, damage: str) -> bytes:
    at = draw(st.integers(0, max(0, len(content) - 1)))
    if damage == "truncated":
        return content[:at]
    if damage == "flipped" and content:
        return content[:at] + bytes([content[at] ^ (1 << draw(st.integers(0, 7)))]) + content[at + 1 :]
    if damage == "padded":
        return content + bytes(draw(st.integers(1, 600)))
    return content + b"\xff\xfegarbage" if damage == "garbage" else content


@st.composite
def trees(draw: st.DrawFn) -> Tree:
    """Draws the files of one folder; most have one data format, so that it can be told."""
    main = draw(st.sampled_from([*DATA, *DATA, *DOCUMENTS]))
    columns = [] if main in DOCUMENTS else draw(st.lists(st.sampled_from(COLUMN_NAMES), max_size=2, unique=True))
    if columns and draw(st.integers(0, 4)) == 0:
        columns[-1] = draw(st.sampled_from(ODD_COLUMN_NAMES))
    id_ = "id" if main in DOCUMENTS else draw(st.sampled_from(ID_NAMES))
    style = _Style(draw(st.sampled_from(ENCODINGS)), id_, tuple(columns), odd=draw(st.integers(0, 2)) == 0)
    beside = st.one_of(*[st.just(main)] * 9, *[st.sampled_from([*DOCUMENTS, *JUNK])] * 5, st.sampled_from(DATA))
    formats = [main, *draw(st.lists(beside, max_size=5))]
    files: dict[str, TreeFile] = {}
    for number, format_ in enumerate(formats):
        file = _file(draw, number, format_, style)
        if not any(f"{a}/".startswith(f"{b}/") for f in files for a, b in ((f, file.place), (file.place, f))):
            files[file.place] = file
    kept = draw(st.booleans())
    metadata = {f"kept_{i}" if kept else name: name for i, name in enumerate(columns) if draw(st.integers(0, 4))}
    return Tree(tuple(files.values()), _links(draw, tuple(files)), reader_of(main), id_, metadata)


def reader_of(format_: str) -> str:
    """Returns the reader of a file."""
    if format_ in DOCUMENTS:
        return "document" if format_ == "html" else "text"
    return "jsonl" if format_.startswith("json") else format_.removesuffix("-stream")


def _links(draw: st.DrawFn, places: Sequence[str]) -> tuple[tuple[str, str], ...]:
    if draw(st.integers(0, 3)):
        return ()
    targets = [*places, *(p.rpartition("/")[0] for p in places if "/" in p), "", "nowhere"]
    drawn = draw(st.lists(st.sampled_from(targets), min_size=1, max_size=2))
    suffixes = [target.rpartition("/")[2].partition(".")[2] for target in drawn]
    return tuple((f"link-{i}{'.' * bool(s)}{s}", t) for i, (t, s) in enumerate(zip(drawn, suffixes, strict=True)))


def _file(draw: st.DrawFn, number: int, format_: str, style: _Style) -> TreeFile:
    rows = _rows(draw, number, style)
    if format_ in DOCUMENTS:
        rows = rows[:1]
    else:
        _add_columns(draw, rows, style)
    if style.columns and format_ in LINES and draw(st.integers(0, 19)) == 0:
        rows = _lengthen(draw, rows, style, number)
    suffix = draw(st.sampled_from(list(PACKERS))) if format_ in PACKABLE else ""
    damage = draw(st.sampled_from([*["none"] * 6, *DAMAGES[: 5 if suffix else 4]]))
    if format_ in JUNK:
        content, rows = draw(st.binary(max_size=20)), []
    else:
        content = _pack(draw, _encode(draw, rows, format_, style), suffix, damage)
    content = _damage(draw, content, damage)
    stem, folder = draw(STEMS), draw(FOLDERS)
    name = f"{stem}-{number}" if draw(st.booleans()) else stem
    ending = f".{SUFFIXES.get(format_, format_)}{suffix}" if format_ else ""
    ending = ending.upper() if draw(st.integers(0, 9)) == 0 else ending
    return TreeFile(f"{folder}/{name}{ending}".lstrip("/"), content, format_, tuple(rows), damage, bool(suffix))


def without_rows(file: TreeFile) -> TreeFile:
    """Returns the file without what is in it, for a short message."""
    return replace(file, rows=(), content=file.content[:200])


def write_tree(root: str, tree: Tree) -> None:
    """Writes the files and links below a folder."""
    for file in tree.files:
        path = _encoded_path(root, file.place)
        os.makedirs(os.path.dirname(path), exist_ok=True)  # noqa: PTH103, PTH120  # bytes
        with open(path, "wb") as out:  # noqa: PTH123
            out.write(file.content)
    for place, target in tree.links:
        os.symlink(_encoded_path(root, target), _encoded_path(root, place))  # noqa: PTH211


def _encoded_path(root: str, place: str) -> bytes:
    return os.fsencode(root) + b"/" + place.encode("utf-8", "surrogateescape")
