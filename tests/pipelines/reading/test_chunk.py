"""Windows over a tokenizer whose tokens are easy to count by eye: words, and runs of `x` one by one."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.spec import Window
from actors.text import windows as cutting
from actors.text.windows import segments, windows
from pipelines.config import ChunkConfig
from pipelines.reading.chunk import CHUNK_FIELDS, chunk_table
from pipelines.reading.documents import error_table, read_schema


class Words:
    """A token is a run of letters other than x, or a single other character that is not a space."""

    def __init__(self) -> None:
        self.longest = 0

    def counts(self, texts: Sequence[str]) -> npt.NDArray[np.int64]:
        return np.array([len(self.offsets(text)[0]) for text in texts], np.int64)

    def offsets(self, text: str) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        self.longest = max(self.longest, len(text))
        spans = np.array([m.span() for m in re.finditer(r"[a-wyz]+|\S", text)], dtype=np.int64).reshape(-1, 2)
        return np.arange(len(spans)), spans[:, 0], spans[:, 1]


def _table(*texts: str | None) -> pa.Table:
    rows = [{"doc_id": f"d{i}", "text": text, "source": "f", "position": i} for i, text in enumerate(texts)]
    return pa.Table.from_pylist(rows, schema=read_schema([pa.field("year", pa.int64())]))


def _chunks(text: str, size: int, overlap: int) -> list[str]:
    return [text[a:b] for a, b in windows(text, Words(), Window(size, overlap)).tolist()]


def test_whole_documents_keep_their_text_and_cover_it() -> None:
    table = chunk_table(_table("héllo", None), Words(), None)
    assert table["chunk_id"].to_pylist() == ["d0#0", None]
    assert table["end"].to_pylist() == [5, None]
    assert table["chunk_count"].to_pylist() == [1, None]
    assert table.schema == pa.schema([*read_schema([pa.field("year", pa.int64())]), *CHUNK_FIELDS])


def test_windows_of_words_with_overlap() -> None:
    assert _chunks("a b c d e f g", 4, 1) == ["a b c d", "d e f g"]
    assert _chunks("a b c d e f g h", 4, 1) == ["a b c d", "d e f g", "g h"]
    assert _chunks("a b c d", 4, 1) == ["a b c d"]
    assert _chunks("a b c d e", 2, 0) == ["a b", "c d", "e"]


def test_a_window_ends_before_a_word_that_it_would_cut() -> None:
    assert _chunks("a b c d e f g h i j xxx k l m", 12, 0) == ["a b c d e f g h i j", "xxx k l m"]


def test_a_text_without_spaces_is_cut_at_tokens() -> None:
    assert _chunks("x" * 10, 4, 1) == ["xxxx", "xxxx", "xxxx"]


def test_chunk_rows_carry_offsets_parents_and_the_other_columns() -> None:
    table = chunk_table(_table("a b c d e", "f"), Words(), Window(3, 1))
    assert table["chunk_id"].to_pylist() == ["d0#0", "d0#1", "d1#0"]
    assert table["chunk_count"].to_pylist() == [2, 2, 1]
    assert table["text"].to_pylist() == ["a b c", "c d e", "f"]
    assert list(zip(table["start"].to_pylist(), table["end"].to_pylist(), strict=True)) == [(0, 5), (4, 9), (0, 1)]
    assert table["position"].to_pylist() == [0, 0, 1]
    assert table.schema == chunk_table(_table("f"), Words(), None).schema


def test_rows_with_errors_pass_through() -> None:
    table = pa.concat_tables([_table("a b c d"), error_table("f", -1, "broken", [pa.field("year", pa.int64())])])
    chunks = chunk_table(table, Words(), Window(2, 0))
    assert chunks["chunk_id"].to_pylist() == ["d0#0", "d0#1", None]
    assert chunks["error"].to_pylist() == [None, None, "broken"]
    assert [chunks[field.name][2].as_py() for field in CHUNK_FIELDS] == [None] * 5


def test_only_texts_that_do_not_fit_are_tokenised_with_places() -> None:
    asked: list[str] = []

    class Counted(Words):
        def counts(self, texts: Sequence[str]) -> npt.NDArray[np.int64]:
            return np.array([len(text.split()) for text in texts], np.int64)

        def offsets(self, text: str) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
            asked.append(text)
            return super().offsets(text)

    table = chunk_table(_table("a b", "a b c", None, "c d e f"), Counted(), Window(3, 1))
    assert table["text"].to_pylist() == ["a b", "a b c", None, "c d e", "e f"]
    assert asked == ["c d e f"]


def test_a_text_that_the_tokenizer_cannot_take_is_marked_and_the_others_are_cut() -> None:
    class Refuses(Words):
        def counts(self, texts: Sequence[str]) -> npt.NDArray[np.int64]:
            if "b b b" in texts:
                raise ValueError("no b")
            return super().counts(texts)

    table = chunk_table(_table("a a a", "b b b", "c"), Refuses(), Window(2, 0))
    assert table["chunk_id"].to_pylist() == ["d0#0", "d0#1", None, "d2#0"]
    assert [error and error.splitlines()[0] for error in table["error"].to_pylist()] == [
        None, None, "ValueError: no b", None,
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("chunk", "room", "window"),
    [
        ({}, 254, Window(254, 31)),
        ({}, 3, Window(3, 0)),
        ({}, 1, Window(1, 0)),
        ({"size": 64}, 254, Window(64, 8)),
        ({"overlap": 300}, 254, Window(254, 253)),
        ({"mode": "whole"}, 254, None),
    ],
)
def test_a_window_is_as_large_as_the_model_takes_unless_a_size_is_given(
    chunk: dict[str, Any], room: int, window: Window | None
) -> None:
    assert ChunkConfig(**chunk).window(room) == window


def test_an_empty_table_stays_empty() -> None:
    for window in (None, Window(4, 1)):
        assert len(chunk_table(_table(), Words(), window)) == 0


def test_a_text_without_tokens_is_one_chunk() -> None:
    class Nothing:
        def counts(self, texts: Sequence[str]) -> npt.NDArray[np.int64]:
            return np.zeros(len(texts), np.int64)

        def offsets(self, text: str) -> tuple[list[int], list[int], list[int]]:
            return [], [], []

    table = chunk_table(_table("\u200b\u200b"), Nothing(), Window(256, 32))
    assert table["text"].to_pylist() == ["\u200b\u200b"]


@settings(deadline=None)
@given(st.text(alphabet="abx \n", max_size=200), st.integers(2, 9), st.data())
def test_every_token_is_in_a_chunk_and_no_chunk_is_too_long(text: str, size: int, data: st.DataObject) -> None:
    overlap = data.draw(st.integers(0, size - 1))
    spans = windows(text, Words(), Window(size, overlap))
    starts, ends = Words().offsets(text)[1:]
    for a, b in spans.tolist():
        assert np.count_nonzero((starts >= a) & (ends <= b)) <= size
    covered = [any(a <= s and e <= b for a, b in spans.tolist()) for s, e in zip(starts, ends, strict=True)]
    assert all(covered)
    assert spans[0, 0] == 0
    assert spans[-1, 1] == len(text)
    assert np.all(np.diff(spans[:, 0]) > 0)


@settings(deadline=None)
@given(st.text(alphabet="ab \n", max_size=300))
def test_segments_cover_the_text_once(text: str) -> None:
    original, cutting.SEGMENT_CHARS = cutting.SEGMENT_CHARS, 10
    try:
        spans = list(segments(text))
    finally:
        cutting.SEGMENT_CHARS = original
    assert "".join(text[a:b] for a, b in spans) == text
    assert all(b - a <= 10 for a, b in spans)


def test_segments_do_not_change_the_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    text = " ".join(f"w{'ab'[i % 2] * (i % 7)}" for i in range(500))
    expected = windows(text, Words(), Window(20, 5))
    monkeypatch.setattr(cutting, "SEGMENT_CHARS", 64)
    assert np.array_equal(windows(text, Words(), Window(20, 5)), expected)


def test_a_large_document_is_tokenised_in_pieces() -> None:
    text = "lorem ipsum dolor " * (5 * 2**20 // 18)
    words = Words()
    begin = time.monotonic()
    table = chunk_table(_table(text), words, Window(256, 32))
    assert words.longest <= cutting.SEGMENT_CHARS
    assert len(table) > 3000
    assert time.monotonic() - begin < 60
