"""Cuts documents into chunks: whole, or token windows with overlap that end at word boundaries where there is one near.

A chunk is an exact substring with character offsets, so a hit can be shown in its document. A long text is tokenised in
segments of 100,000 characters cut at whitespace: one call over 50 MB would hold gigabytes of token objects. That
changes a token only where a segment holds no whitespace at all. Snapping to words costs up to a quarter of a window and
keeps a chunk's own tokens equal to those of the document.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.config import ChunkConfig

IntArray: TypeAlias = npt.NDArray[np.int64]

SEGMENT_CHARS = 100_000

CHUNK_FIELDS: tuple[pa.Field, ...] = (
    pa.field("chunk_id", pa.string()),
    pa.field("chunk_index", pa.int32()),
    pa.field("chunk_count", pa.int32()),
    pa.field("start", pa.int64()),
    pa.field("end", pa.int64()),
)


class Offsets(Protocol):
    """What chunking needs of a tokenizer."""

    def offsets(self, text: str) -> tuple[npt.ArrayLike, npt.ArrayLike, npt.ArrayLike]:
        """Token ids, and the first character and the one after the last of each token, without special tokens."""
        ...


def chunk_table(table: pa.Table, tokenizer: Offsets, config: ChunkConfig) -> pa.Table:
    """A row for each chunk: the columns of `table`, `text` now the chunk's, and CHUNK_FIELDS.

    `chunk_id` is `doc_id#chunk_index`; `start` and `end` count characters of the document's text. A row with `error`
    passes through with nulls in the new columns.
    """
    if config.mode == "whole":
        return _whole(table)
    texts = table["text"].to_pylist()
    spans = [None if text is None else windows(text, tokenizer, config.size, config.overlap) for text in texts]
    return _cut(table, texts, spans)


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


def windows(text: str, tokenizer: Offsets, size: int, overlap: int) -> IntArray:
    """(n, 2) first character and one after the last of each window of at most `size` tokens; one at least."""
    starts, ends, words = _tokens(text, tokenizer)
    if len(starts) <= size:
        return np.array([[0, len(text)]], dtype=np.int64)
    cuts = np.array(list(_cuts(words, len(starts), size, overlap)), dtype=np.int64)
    spans = np.stack([starts[cuts[:, 0]], ends[cuts[:, 1] - 1]], axis=1)
    spans[0, 0], spans[-1, 1] = 0, len(text)
    return spans


def _cuts(words: IntArray, n_tokens: int, size: int, overlap: int) -> Iterator[tuple[int, int]]:
    """(first, one after the last) token of each window; `words` are the tokens that begin a word, ascending."""
    slack = (size - overlap) // 4
    first = 0
    while first + size < n_tokens:
        last = _snap(words, first + size, slack)
        yield first, last
        first = _snap(words, last - overlap, slack) if overlap else last
    yield first, n_tokens


def _snap(words: IntArray, token: int, slack: int) -> int:
    """The last word begin at or up to `slack` tokens before `token`; `token` itself if there is none."""
    i = int(np.searchsorted(words, token, side="right")) - 1
    return int(words[i]) if i >= 0 and words[i] >= token - slack else token


def _tokens(text: str, tokenizer: Offsets) -> tuple[IntArray, IntArray, IntArray]:
    """Start and end character of each token, and which tokens begin a word: those after whitespace or with it."""
    starts, ends, begins = [], [], []
    n_tokens = 0
    for a, b in segments(text):
        segment = text[a:b]
        _, first, last = (np.asarray(part, dtype=np.int64) for part in tokenizer.offsets(segment))
        if len(first) == 0:
            continue
        space = np.fromiter((segment[i].isspace() for i in first.tolist()), dtype=bool, count=len(first))
        after_gap = np.concatenate([[True], first[1:] > last[:-1]])
        begins.append(np.flatnonzero(space | after_gap) + n_tokens)
        starts.append(first + a)
        ends.append(last + a)
        n_tokens += len(first)
    empty = [np.zeros(0, dtype=np.int64)]
    return np.concatenate(starts or empty), np.concatenate(ends or empty), np.concatenate(begins or empty)


def segments(text: str) -> Iterator[tuple[int, int]]:
    """(start, end) of pieces of at most SEGMENT_CHARS characters that cover the text, cut after whitespace if any."""
    start = 0
    while len(text) - start > SEGMENT_CHARS:
        end = start + SEGMENT_CHARS
        space = max(text.rfind(" ", start, end), text.rfind("\n", start, end))
        cut = end if space <= start else space
        yield start, cut
        start = cut
    yield start, len(text)
