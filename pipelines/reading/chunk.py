"""Splits documents into chunks, or keeps them whole: one row per chunk, with its position in the document."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from actors.arrow.blocks import set_row_errors
from actors.arrow.isolate import isolate_failures
from actors.outputs import IntArray
from actors.spec import Window
from actors.text.windows import Offsets, cut_all_into_windows
from pipelines.reading.columns import PLACES
from pipelines.reading.formats import is_document
from pipelines.reading.outline import Outline

CHUNK_FIELDS: tuple[pa.Field, ...] = (
    pa.field("chunk_id", pa.string()),
    pa.field("chunk_index", pa.int32()),
    pa.field("chunk_count", pa.int32()),
    pa.field("start", pa.int64()),
    pa.field("end", pa.int64()),
)


def chunk_table(table: pa.Table, tokenizer: Offsets, window: Window | None) -> pa.Table:
    """Returns one row per chunk: the columns of `table`, the chunk's own `text`, and CHUNK_FIELDS.

    window: None leaves every document whole. `chunk_id` is `doc_id#chunk_index`; `start` and `end` count characters of
    the document's text. A row with `error` passes through with nulls in the new columns, and so does a text that the
    tokenizer cannot take.
    """
    if window is None:
        return fill_places(_whole(table), table)
    texts = table["text"].to_pylist()
    good = np.array([i for i, text in enumerate(texts) if text is not None], np.int64)
    found = isolate_failures(lambda part: cut_all_into_windows([texts[i] for i in part], tokenizer, window), good)
    spans: list[IntArray | None] = [None] * len(texts)
    for rows, cut in found.parts:
        for i, span in zip(rows.tolist(), cut, strict=True):
            spans[i] = span
    return fill_places(
        _cut(set_row_errors(table, {failure.row: str(failure) for failure in found.failures}), texts, spans), table
    )


def fill_places(chunks: pa.Table, documents: pa.Table) -> pa.Table:
    """Fills `heading` and `page` of chunks if the table has these columns and the chunk's source is a document file."""
    names = [name for name in PLACES if name in chunks.column_names]
    if not names:
        return chunks
    pairs = zip(documents["doc_id"].to_pylist(), documents["text"].to_pylist(), strict=True)
    texts = {document: text for document, text in pairs if text is not None}  # a duplicate has none
    wanted = {source: is_document(source) for source in chunks["source"].unique().to_pylist()}
    outlines: dict[str, Outline] = {}
    found: dict[str, list[Any]] = {name: chunks[name].to_pylist() for name in names}
    rows = zip(chunks["doc_id"].to_pylist(), chunks["source"].to_pylist(), chunks["start"].to_pylist(), strict=True)
    for i, (document, source, start) in enumerate(rows):
        if start is None or not wanted[source]:
            continue
        if document not in outlines:
            outlines[document] = Outline.of(texts[document])
        place = outlines[document].place(start)
        for name in names:
            found[name][i] = place[name]
    for name in names:
        field = chunks.schema.field(name)
        chunks = chunks.set_column(chunks.schema.get_field_index(name), field, pa.array(found[name], field.type))
    return chunks


def _whole(table: pa.Table) -> pa.Table:
    good = pc.is_valid(table["text"])
    zero = pc.if_else(good, 0, None)
    columns = [
        pc.if_else(good, pc.binary_join_element_wise(table["doc_id"], "0", "#"), None),
        zero,
        pc.if_else(good, 1, None),
        zero,
        pc.utf8_length(table["text"]),
    ]
    return _with_chunks(table, columns)


def _cut(table: pa.Table, texts: list[str | None], spans: list[IntArray | None]) -> pa.Table:
    counts = np.array([1 if s is None else len(s) for s in spans], dtype=np.int64)
    parent = np.repeat(np.arange(len(texts)), counts)
    index = np.arange(len(parent)) - np.repeat(np.cumsum(counts) - counts, counts)
    bounds = np.concatenate(
        [np.zeros((0, 2), np.int64), *(np.zeros((1, 2), np.int64) if s is None else s for s in spans)]
    )
    bad = np.array([s is None for s in spans], dtype=bool)[parent]
    chunks = [None if text is None else text[a:b] for text, s in zip(texts, spans, strict=True) for a, b in _rows(s)]
    rows = table.drop_columns(["text"]).take(parent)
    rows = rows.add_column(table.schema.get_field_index("text"), "text", pa.array(chunks, pa.string()))
    ids = [None if b else f"{d}#{i}" for d, i, b in zip(rows["doc_id"].to_pylist(), index, bad, strict=True)]
    numbers = [pa.array(values, mask=bad) for values in (index, counts[parent], bounds[:, 0], bounds[:, 1])]
    return _with_chunks(rows, [pa.array(ids, pa.string()), *numbers])


def _rows(spans: IntArray | None) -> list[list[int]]:
    return [[0, 0]] if spans is None else spans.tolist()


def _with_chunks(table: pa.Table, columns: list[pa.Array]) -> pa.Table:
    for field, values in zip(CHUNK_FIELDS, columns, strict=True):
        table = table.append_column(field, values.cast(field.type))
    return table
